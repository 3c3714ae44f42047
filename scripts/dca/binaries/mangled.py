"""Reads names from mangled C++ symbols (the Itanium C++ ABI), as g++ and nvcc write them.

It keeps only an entity's qualified name and, for an instance of a template, its arguments' names.

Two alternatives fail on real kernels. `itanium_demangler` rejects the expressions in CUTLASS's and vLLM's names, and
takes exponential time for crafted names. c++filt is not on every machine, cannot read some of CUTLASS's kernels, and
returns text that would need parsing again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple


class MangledError(ValueError):
    """The symbol is not a mangled name, or uses an unsupported construct."""


class Name(NamedTuple):
    """The name of a function, class or variable.

    Args:
        text: the qualified name without template arguments; empty for a built-in type, a pointer or a value.
        arguments: of the last component, if it is an instance of a template.
    """

    text: str
    arguments: tuple[Name, ...] = ()


_NAMELESS = Name("")
_BUILT_IN = frozenset("vwbcahstijlmxynofdegz")
_STANDARD = {
    "a": "std::allocator",
    "b": "std::basic_string",
    "s": "std::string",
    "i": "std::istream",
    "o": "std::ostream",
    "d": "std::iostream",
}
_OPERATORS = {
    "nw": " new", "na": " new[]", "dl": " delete", "da": " delete[]", "ps": "+", "ng": "-", "ad": "&", "de": "*",
    "co": "~", "pl": "+", "mi": "-", "ml": "*", "dv": "/", "rm": "%", "an": "&", "or": "|", "eo": "^", "aS": "=",
    "pL": "+=", "mI": "-=", "mL": "*=", "dV": "/=", "rM": "%=", "aN": "&=", "oR": "|=", "eO": "^=", "ls": "<<",
    "rs": ">>", "lS": "<<=", "rS": ">>=", "eq": "==", "ne": "!=", "lt": "<", "gt": ">", "le": "<=", "ge": ">=",
    "ss": "<=>", "nt": "!", "aa": "&&", "oo": "||", "pp": "++", "mm": "--", "cm": ",", "pm": "->*", "pt": "->",
    "cl": "()", "ix": "[]", "qu": "?", "aw": " co_await",
}  # fmt: skip
_UNARY = frozenset(("ps", "ng", "ad", "de", "co", "nt", "pp", "mm", "sz", "az", "nx", "te", "sp", "sZ", "tw"))
_OF_TYPE = frozenset(("st", "at", "ti"))
_CASTS = frozenset(("sc", "dc", "cc", "rc"))
# A crafted symbol may use up time or memory: substitutions can double the length of a name with every eight characters,
# and a qualified name is kept once for each of its parts. Both limits are far above what compilers write.
_LONGEST = 1 << 15
_MOST_TEXT = 1 << 22
# Namespaces that are not in the source: nvcc wraps entities with internal linkage in a namespace named after the file,
# and CUB and Thrust have an inline namespace named after the archs they are compiled for.
_WRAPPER = re.compile(r"_INTERNAL_.*|(?:CUB|THRUST)_\w+_NS")
_ANONYMOUS = re.compile(r"_GLOBAL_[._$]N")


def read(symbol: str) -> Name:
    """The name of a symbol's entity; for a virtual table or type information, the name of its class.

    Raises:
        MangledError: if it cannot be read.
    """
    return _open(symbol, _Reader.entity)[1]


def uses_old_string(symbol: str) -> bool:
    """Whether a symbol's signature contains the std::string from before C++11.

    Raises:
        MangledError: if it cannot be read.
    """
    return _open(symbol, _Reader.encoding)[0].old_string


def _open(symbol: str, read: Callable[[_Reader], Name]) -> tuple[_Reader, Name]:
    if not symbol.startswith("_Z"):
        raise MangledError(f"{symbol} is not a mangled name")
    if len(symbol) > _LONGEST:
        raise MangledError(f"a symbol of {len(symbol)} characters is too long")
    reader = _Reader(symbol)
    try:
        return reader, read(reader)
    except RecursionError:
        raise reader.fail() from None


class _Reader:
    """One pass over a symbol; each method reads the construct that the ABI calls by its name, from `position` on."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 2
        self.substitutions: list[Name] = []  # what S_, S0_, ... stand for
        self.old_string = False
        self.of_type: set[int] = set()  # positions where `resolved_in` found a type
        self.text_left = _MOST_TEXT

    def fail(self) -> MangledError:
        return MangledError(f"{self.text} cannot be read from character {self.position} on")

    def peek(self, size: int = 1) -> str:
        return self.text[self.position : self.position + size]

    def accept(self, token: str) -> bool:
        if self.text.startswith(token, self.position):
            self.position += len(token)
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise self.fail()

    def match(self, pattern: str) -> re.Match[str]:
        match = re.compile(pattern).match(self.text, self.position)
        if match is None:
            raise self.fail()
        self.position = match.end()
        return match

    def join(self, scope: str, name: str) -> str:
        """A qualified name."""
        joined = f"{scope}::{name}" if scope and name else scope or name
        self.text_left -= len(joined)
        if self.text_left < 0:
            raise self.fail()
        return joined

    def keep(self, name: Name) -> Name:
        self.substitutions.append(name)
        return name

    # --- entities ---

    def entity(self) -> Name:
        if self.peek(2) in {"TV", "TT", "TI", "TS"}:
            self.position += 2
            return self.type()
        if self.peek(2) in {"Th", "Tv", "Tc"}:
            self.match(r"Thn?\d+_|Tvn?\d+_n?\d+_|Tc(?:hn?\d+_|vn?\d+_n?\d+_){2}")
            return self.entity()
        self.match("(?:GV|GR|TH|TW)?")
        return self.name()

    def encoding(self) -> Name:
        """A function with its signature, or a variable."""
        name = self.entity()
        while self.peek() not in {"", "E", "."}:
            self.type()
        return name

    def name(self) -> Name:
        if self.accept("N"):
            return self.nested()
        if self.accept("Z"):
            return self.local()
        if self.peek() == "S" and self.peek(2) != "St":
            name = self.substitution()
        else:
            scope = "std" if self.accept("St") else ""
            name = Name(self.join(scope, self.component("")))
            if self.peek() == "I":
                self.keep(name)
        return Name(name.text, self.arguments()) if self.peek() == "I" else name

    def nested(self) -> Name:
        self.match("[rVK]*[RO]?")
        whole = _NAMELESS
        while not self.accept("E"):
            kept = False
            if self.accept("St"):
                whole, kept = Name("std"), True
            elif self.peek() == "S":
                whole, kept = self.substitution(), True
            elif self.peek() == "T":
                whole = self.template_parameter()
            elif self.peek(2) in {"Dt", "DT"}:
                whole = self.decltype()
            elif self.peek() == "I":
                whole = Name(whole.text, self.arguments())
            else:
                whole = Name(self.join(whole.text, self.component(whole.text)))
                self.accept("M")  # a lambda in a member's initial value follows
            if not kept and self.peek() != "E":
                self.keep(whole)
        return whole

    def local(self) -> Name:
        function = self.encoding()
        self.expect("E")
        if self.accept("s"):
            self.match(r"(?:_\d|__\d+_)?")
            return function
        if self.accept("d"):
            self.match(r"n?\d*_")
        inner = self.name()
        self.match(r"(?:_\d|__\d+_)?")
        return Name(self.join(function.text, inner.text), inner.arguments)

    def component(self, scope: str) -> str:
        """One part of a qualified name."""
        self.accept("L")
        head = self.peek()
        if head.isdigit():
            name = self.source_name()
        elif head == "C":
            inherits = self.match("C(I?)[1-5]").group(1)
            if inherits:
                self.type()
            name = scope.rsplit("::", 1)[-1]
        elif head == "D" and self.peek(2)[1:].isdigit():
            self.position += 2
            name = "~" + scope.rsplit("::", 1)[-1]
        elif self.accept("Ul"):
            self.until_end(self.type)
            self.match(r"\d*_")
            name = "{lambda}"
        elif head == "U":
            self.match(r"Ut\d*_")
            name = "{unnamed}"
        else:
            name = self.operator_name()
        while self.accept("B"):
            self.source_name()
        return name

    def source_name(self) -> str:
        size = int(self.match(r"\d{1,9}").group())
        name = self.peek(size)
        if len(name) < size:
            raise self.fail()
        self.position += size
        if _ANONYMOUS.match(name):
            return "(anonymous namespace)"
        return "" if _WRAPPER.fullmatch(name) else name

    def operator_name(self) -> str:
        if self.accept("cv"):
            return f"operator {self.type().text}"
        if self.accept("li"):
            return f'operator"" {self.source_name()}'
        code = self.peek(2)
        if code not in _OPERATORS:
            raise self.fail()
        self.position += 2
        return f"operator{_OPERATORS[code]}"

    def substitution(self) -> Name:
        match = self.match("S(?:([0-9A-Z]{0,6})_|([absiod]))")
        if match[2]:
            self.old_string = self.old_string or match[2] in "bs"
            return Name(_STANDARD[match[2]])
        index = int(match[1], 36) + 1 if match[1] else 0
        if index >= len(self.substitutions):
            raise self.fail()
        return self.substitutions[index]

    def template_parameter(self) -> Name:
        self.match(r"T(?:L\d*_)?\d*_")
        return _NAMELESS

    def arguments(self) -> tuple[Name, ...]:
        self.match("[IJ]")
        names: list[Name] = []
        while not self.accept("E"):
            if self.peek() == "J":
                names += self.arguments()
            elif self.accept("X"):
                self.expression()
                self.expect("E")
                names.append(_NAMELESS)
            else:
                names.append(self.literal() if self.peek() == "L" else self.type())
        return tuple(names)

    # --- types ---

    def type(self) -> Name:  # noqa: C901 - one branch for each kind that the ABI lists
        head = self.peek()
        if head in _BUILT_IN:
            self.position += 1
            return _NAMELESS
        if head in {"r", "V", "K"}:
            self.match("[rVK]+")
            return self.keep(self.type())
        if head and head in "PROCG":
            self.position += 1
            self.type()
        elif head in {"u", "U"}:
            self.position += 1
            self.source_name()
            if self.peek() == "I":
                self.arguments()
            if head == "U":
                self.type()
        elif head == "A":
            self.array()
        elif head == "M":
            self.position += 1
            self.type()
            self.type()
        elif head == "F":
            self.function()
        elif head == "D":
            return self.d_type()
        elif head == "T" and self.peek(2) not in {"Ts", "Tu", "Te"}:
            return self.maybe_instance(self.keep(self.template_parameter()))
        elif head == "S" and self.peek(2) != "St":
            return self.maybe_instance(self.substitution())
        else:
            self.match("(?:T[sue])?(?=[NZSLU0-9])")
            return self.keep(self.name())
        return self.keep(_NAMELESS)

    def maybe_instance(self, name: Name) -> Name:
        return self.keep(Name(name.text, self.arguments())) if self.peek() == "I" else name

    def array(self) -> None:
        self.expect("A")
        if self.peek() != "_" and not self.match(r"\d*").group():
            self.expression()
        self.expect("_")
        self.type()

    def function(self) -> None:
        self.match("FY?")
        while not re.compile("[RO]?E").match(self.text, self.position):
            self.type()
        self.match("[RO]?E")

    def d_type(self) -> Name:
        """A type that begins with D: a pack, decltype, vector, exception specification or further built-in type."""
        code = self.peek(2)
        if code in {"Dt", "DT"}:
            return self.keep(self.decltype())
        if code == "Dp":
            self.position += 2
            self.type()
        elif code == "Dv":
            self.match(r"Dv\d+_")
            self.type()
        elif code in {"Do", "Dx"}:
            self.position += 2
            return self.type()
        elif code == "DO":
            self.position += 2
            self.expression()
            self.expect("E")
            return self.type()
        else:
            self.match(r"D(?:[defhisuacn]|F\d+[_bx])")
            return _NAMELESS
        return self.keep(_NAMELESS)

    def decltype(self) -> Name:
        self.match("D[tT]")
        self.expression()
        self.expect("E")
        return _NAMELESS

    # --- values ---

    def literal(self) -> Name:
        self.expect("L")
        if self.accept("_Z"):
            self.encoding()
            self.expect("E")
        else:
            self.type()
            self.match("[^E]*E")
        return _NAMELESS

    def until_end(self, read: Callable[[], object]) -> None:
        while not self.accept("E"):
            read()

    def expression(self) -> None:  # noqa: C901 - one branch for each kind that the ABI lists
        self.accept("gs")
        code = self.peek(2)
        if code[:1] == "L":
            self.literal()
        elif code[:1] == "T":
            self.template_parameter()
        elif code in {"fp", "fL"}:
            self.match(r"fp[rVK]*\d*_|fL\d+p[rVK]*\d*_|fpT")
        elif code[:1].isdigit() or code == "on":
            self.unresolved()
        elif code == "sr":
            self.position += 2
            self.resolved_in()
        else:
            self.position += 2
            if code in _UNARY:
                self.accept("_")
                self.expression()
            elif code in _OF_TYPE:
                self.type()
            elif code in _CASTS:
                self.type()
                self.expression()
            elif code in {"cl", "il", "sP"}:
                self.until_end(self.expression)
            elif code in {"cv", "tl"}:
                self.type()
                if code == "tl" or self.accept("_"):
                    self.until_end(self.expression)
                else:
                    self.expression()
            elif code in {"dt", "pt"}:
                self.expression()
                self.unresolved()
            elif code == "qu":
                self.expression()
                self.expression()
                self.expression()
            elif code in _OPERATORS:
                self.expression()
                self.expression()
            else:
                raise self.fail()

    def unresolved(self) -> None:
        if self.accept("sr"):
            self.resolved_in()
            return
        self.accept("on")
        self.component("")
        if self.peek() == "I":
            self.arguments()

    def resolved_in(self) -> None:
        """A name in a scope that depends on a template's arguments."""
        start, known = self.position, len(self.substitutions)
        if self.peek().isdigit() and start not in self.of_type:
            # nvcc and the ABI write a list of scopes that ends with E; g++ writes a type, which begins the same way.
            self.until_end(self.unresolved)
            if self.peek().isdigit() or self.peek(2) == "on":
                self.unresolved()
                return
            # Remember it: otherwise nested names would be tried both ways again, twice as often at each level.
            self.of_type.add(start)
            self.position = start
            del self.substitutions[known:]
        self.type()
        self.unresolved()

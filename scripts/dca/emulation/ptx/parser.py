"""PTX text to values. A module's functions are parsed one by one, when they are needed."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from dca.emulation.ptx.tokens import Token, block_end, damaged, tokens
from dca.emulation.ptx.values import (
    BYTES,
    Address,
    Function,
    Group,
    Immediate,
    Instruction,
    Label,
    Module,
    Negated,
    Operand,
    Other,
    Pair,
    Register,
    Span,
    Symbol,
    Variable,
    Vector,
)

OLDEST, NEWEST = (6, 0), (9, 9)
"""Versions of the language that are read."""
_LINKAGE = frozenset((".visible", ".extern", ".weak", ".common"))
_SPACES = frozenset((".global", ".const", ".shared", ".local", ".param"))
_RANGE = re.compile(r"(.*?)(\d+)")
_FLOAT = re.compile(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}")
_INTEGER = re.compile(r"0[xX][0-9a-fA-F]+U?|0[bB][01]+U?|[0-9]+U?")
_END = Token("", 0)


class _Reader:
    """Tokens with one to look at."""

    def __init__(self, stream: Iterator[Token], line: int) -> None:
        self._stream = stream
        self.line = line
        self.next = next(stream, _END)

    def take(self) -> str:
        """The next token."""
        token = self.next
        if not token.text:
            raise damaged(self.line, "the text is cut off")
        self.line = token.line
        self.next = next(self._stream, _END)
        return token.text

    def at(self, text: str) -> bool:
        """Takes the next token if it is this one."""
        if self.next.text != text:
            return False
        self.take()
        return True

    def expect(self, text: str) -> None:
        """Takes this token.

        Raises:
            DcaError: DCA-831 for another one.
        """
        if not self.at(text):
            raise damaged(self.next.line or self.line, f"expected `{text}`, not `{self.next.text}`")

    def integer(self) -> int:
        """A number, with its sign.

        Raises:
            DcaError: DCA-831.
        """
        negative = self.at("-")
        word = self.take()
        if not _INTEGER.fullmatch(word):
            raise damaged(self.line, f"`{word}` is no number")
        value = _number(word)
        return -value if negative else value


def _number(word: str) -> int:
    word = word.rstrip("U")
    # As in C, a leading 0 means octal.
    return int(word, 8) if len(word) > 1 and word.isdigit() and word[0] == "0" else int(word, 0)


# Where a statement of a module may begin; strings and comments are passed over by name.
_STATEMENT = re.compile(r"//[^\n]*|/\*.*?\*/|\.[A-Za-z_]+|\S", re.DOTALL)


def module(text: str) -> Module:
    """A PTX text, without the bodies of its functions.

    Raises:
        DcaError: DCA-831 if the text is damaged, cut off or of an unknown version.
    """
    reader = _ModuleReader(text)
    return reader.read()


class _ModuleReader:
    def __init__(self, text: str) -> None:
        self.text = text.rstrip("\0 \n\t\r")
        self.variables: dict[str, Variable] = {}
        self.functions: dict[str, Span] = {}
        self.kernels: set[str] = set()
        self.files: dict[int, str] = {}
        self.version = (0, 0)
        self.target = ""
        self.at, self.line = 0, 1

    def read(self) -> Module:
        while (match := _STATEMENT.search(self.text, self.at)) is not None:
            self.line += self.text.count("\n", self.at, match.start())
            self.at = match.start()
            word = match[0]
            if word.startswith(("//", "/*")):
                self.line += word.count("\n")
                self.at = match.end()
            elif not word.startswith("."):
                raise damaged(self.line, f"unexpected {word!r} outside of a function")
            elif not self.version[0] and word != ".version":
                raise damaged(self.line, "it does not begin with .version")
            else:
                self._statement(word)
        if not self.version[0] or not self.target:
            raise damaged(self.line, "it has no .version and .target; the text is empty or cut off")
        kernels = frozenset(self.kernels)
        return Module(self.version, self.target, self.variables, self.functions, kernels, self.files, self.text)

    def _statement(self, word: str) -> None:
        if word in (".version", ".target", ".address_size"):
            self._header(word, self._line_of_words())
        elif word == ".file":
            fields = self._line_of_words()
            self.files[int(fields[1])] = fields[2].strip('"')
        elif word == ".section":
            start = self.text.find("{", self.at)
            self._pass(self.text, block_end(self.text, start, self.line) if start >= 0 else len(self.text))
        elif word == ".pragma":
            self._pass(self.text, self._semicolon() + 1)
        else:
            self._declaration()

    def _header(self, word: str, fields: list[str]) -> None:
        value = fields[1] if len(fields) > 1 else ""
        if word == ".version":
            match = re.fullmatch(r"(\d+)\.(\d+)", value)
            self.version = (int(match[1]), int(match[2])) if match else (0, 0)
            if not OLDEST <= self.version <= NEWEST:
                raise damaged(self.line, f"the version {value or '(none)'} of PTX is not one that is read")
        elif word == ".target":
            self.target = value.rstrip(",")
        elif value != "64":
            raise damaged(self.line, f"addresses of {value} bits are not supported")

    def _line_of_words(self) -> list[str]:
        end = self.text.find("\n", self.at)
        end = len(self.text) if end < 0 else end
        words = self.text[self.at : end].split("//")[0].split()
        self._pass(self.text, end)
        return words

    def _pass(self, text: str, end: int) -> None:
        self.line += text.count("\n", self.at, end)
        self.at = end

    def _semicolon(self) -> int:
        end = self.text.find(";", self.at)
        if end < 0:
            raise damaged(self.line, "a statement does not end; the text is cut off")
        return end

    def _declaration(self) -> None:
        """A variable, or a function whose body is passed over."""
        start, line = self.at, self.line
        brace, semicolon = self.text.find("{", start), self._semicolon_or_end()
        head = self.text[start : semicolon if brace < 0 else min(brace, semicolon)]
        words = head.split()
        keyword = next((word for word in words if word not in _LINKAGE), "")
        if keyword in (".entry", ".func"):
            if 0 <= brace < semicolon:
                end = block_end(self.text, brace, line)
                name = _function_name(_Reader(tokens(self.text, start, brace, line), line))
                self.functions[name] = Span(start, line, end)
                if keyword == ".entry":
                    self.kernels.add(name)
                self._pass(self.text, end)
            else:
                self._pass(self.text, self._semicolon() + 1)
            return
        if keyword not in _SPACES:
            raise damaged(line, f"the directive `{keyword or words[0]}` is not known")
        end = self._semicolon() + 1
        reader = _Reader(tokens(self.text, start, end, line), line)
        extern = False
        while reader.next.text in _LINKAGE:
            extern = extern or reader.take() in (".extern", ".common")
        for one in _variables(reader, extern):
            self.variables[one.name] = one
        self._pass(self.text, end)

    def _semicolon_or_end(self) -> int:
        end = self.text.find(";", self.at)
        return len(self.text) if end < 0 else end


def _function_name(reader: _Reader) -> str:
    while reader.take() not in (".entry", ".func"):
        pass
    if reader.at("("):
        while reader.take() != ")":
            pass
    return reader.take()


def _variables(reader: _Reader, extern: bool) -> Iterator[Variable]:
    """The variables of one statement, from its state space to its semicolon."""
    space = reader.take().removeprefix(".")
    align, kind, lanes = _type(reader)
    while True:
        yield _variable(reader, (space, kind, lanes, align), extern)
        if reader.at(";"):
            return
        reader.expect(",")


def _type(reader: _Reader) -> tuple[int, str, int]:
    """Alignment, element type and elements of a vector, as declared."""
    align, lanes = 0, 1
    while True:
        word = reader.take()
        if word == ".align":
            align = reader.integer()
        elif word in (".v2", ".v4"):
            lanes = int(word[2:])
        elif word == ".ptr":
            # What a pointer points to, which nothing depends on.
            while reader.next.text in (".global", ".const", ".shared", ".local", ".align"):
                if reader.take() == ".align":
                    reader.integer()
        elif word.removeprefix(".") in BYTES and word.startswith("."):
            kind = word.removeprefix(".")
            return align or lanes * BYTES[kind], kind, lanes
        elif word not in (".attribute",):
            raise damaged(reader.line, f"`{word}` is no type of a variable")


def _variable(reader: _Reader, declared: tuple[str, str, int, int], extern: bool) -> Variable:
    space, kind, lanes, align = declared
    if reader.next.text == ".ptr":
        while reader.next.text.startswith("."):
            if reader.take() == ".align":
                align = align and (reader.integer() and align)
    name = reader.take()
    count, unsized = lanes, False
    while reader.at("["):
        if reader.at("]"):
            unsized = True
            continue
        count *= reader.integer()
        reader.expect("]")
    initial, pointers = b"", []
    if reader.at("="):
        values = list(_initial(reader))
        if unsized:
            count, unsized = len(values), False
        for place, value in enumerate(values):
            if isinstance(value, tuple):
                pointers.append((place * BYTES[kind], value[0], value[1]))
                value = 0
            initial += (value & (1 << 8 * BYTES[kind]) - 1).to_bytes(BYTES[kind], "little")
    size = 0 if unsized else count * BYTES[kind]
    if len(initial) > size:
        raise damaged(reader.line, f"{name} has more initial values than elements")
    padded = initial.ljust(size, b"\0") if initial else b""
    return Variable(name, space, kind, align, size, padded, tuple(pointers), extern)


def _initial(reader: _Reader) -> Iterator[int | tuple[str, int]]:
    """Initial values: integers, bits of floats, or a variable and an addend."""
    if reader.at("{"):
        while not reader.at("}"):
            yield from _initial(reader)
            if not reader.at(",") and reader.next.text != "}":
                raise damaged(reader.line, "a list of initial values is damaged")
        return
    negative = reader.at("-")
    word = reader.take()
    if _FLOAT.fullmatch(word):
        yield int(word[2:], 16)
    elif _INTEGER.fullmatch(word):
        yield -_number(word) if negative else _number(word)
    else:
        generic = word == "generic" and reader.at("(")
        name = reader.take() if generic else word
        if generic:
            reader.expect(")")
        yield name, reader.integer() if reader.at("+") else 0


def only(text: str, kernel: str) -> str:
    """A text without its other kernels.

    Raises:
        DcaError: DCA-831 if the text is damaged, cut off or of an unknown version.
    """
    source = module(text)
    others = sorted(source.functions[name] for name in source.kernels - {kernel})
    starts, ends = [0, *(span.end for span in others)], [*(span.start for span in others), len(source.text)]
    return "".join(source.text[start:end] for start, end in zip(starts, ends, strict=True)) + "\n"


def function(source: Module, name: str) -> Function:
    """A function of a module, with its body.

    Raises:
        DcaError: DCA-831 if its text is damaged.
    """
    span = source.functions[name]
    reader = _Reader(tokens(source.text, span.start, span.end, span.line), span.line)
    return _FunctionReader(source, reader).read(span)


class _FunctionReader:
    def __init__(self, source: Module, reader: _Reader) -> None:
        self.source, self.reader = source, reader
        self.registers: list[str] = []
        self.variables: list[Variable] = []
        self.body: list[Instruction | Label] = []
        self.places: list[tuple[int, str]] = []
        # Per scope: names of registers and variables, prefixes of numbered registers, labels.
        self.scopes: list[dict[str, Register | Symbol]] = [{}]
        self.ranges: list[dict[str, tuple[int, int, str]]] = [{}]
        self.prefixes = [""]
        self.labels: list[set[str]] = [set()]
        self.opened = 0

    def read(self, span: Span) -> Function:
        reader = self.reader
        while (keyword := reader.take()) not in (".entry", ".func"):
            pass
        results = tuple(self._parameters()) if reader.next.text == "(" else ()
        name = reader.take()
        parameters = tuple(self._parameters()) if reader.next.text == "(" else ()
        directives: dict[str, tuple[int, ...]] = {}
        while not reader.at("{"):
            word = reader.take().removeprefix(".")
            numbers: list[int] = []
            while reader.next.text[:1].isdigit():
                numbers.append(reader.integer())
                reader.at(",")
            directives[word] = tuple(numbers)
        for one in (*parameters, *results):
            self.scopes[0][one.name] = Symbol(one.name)
        self._block()
        return Function(
            name,
            keyword == ".entry",
            parameters,
            results,
            span.line,
            directives,
            tuple(self.body),
            tuple(self.registers),
            tuple(self.variables),
            tuple(self.places),
        )

    def _parameters(self) -> Iterator[Variable]:
        reader = self.reader
        reader.expect("(")
        while not reader.at(")"):
            space = reader.take()
            if space == ".reg":
                raise damaged(reader.line, "parameters in registers are not supported")
            align, kind, lanes = _type(reader)
            yield _variable(reader, (space.removeprefix("."), kind, lanes, align), extern=False)
            reader.at(",")

    def _block(self) -> None:
        """Statements up to the brace that ends the block; labels belong to the block."""
        reader = self.reader
        while not reader.at("}"):
            word = reader.take()
            if word == "{":
                self.opened += 1
                self.scopes.append({})
                self.ranges.append({})
                self.prefixes.append(f"{self.opened}:")
                self.labels.append(set())
                self._block()
                for stack in (self.scopes, self.ranges, self.prefixes, self.labels):
                    stack.pop()
            elif word.startswith("."):
                self._directive(word)
            elif reader.next.text == ":" and word != "@":
                reader.take()
                self._label(word)
            else:
                self._instruction(word)

    def _label(self, name: str) -> None:
        reader = self.reader
        name = self.prefixes[-1] + name
        targets: list[str] = []
        if reader.at(".branchtargets"):
            while not reader.at(";"):
                targets.append(self.prefixes[-1] + reader.take())
                reader.at(",")
        elif reader.next.text in (".callprototype", ".calltargets"):
            # Of calls through a pointer, which are refused where a kernel has one.
            while reader.take() != ";":
                pass
            return
        self.labels[-1].add(name)
        self.body.append(Label(name, tuple(targets)))

    def _directive(self, word: str) -> None:
        reader = self.reader
        if word == ".reg":
            self._registers()
        elif word in _SPACES:
            # The state space was taken already.
            align, kind, lanes = _type(reader)
            while True:
                one = _variable(reader, (word.removeprefix("."), kind, lanes, align), extern=False)
                unique = f"{self.prefixes[-1]}{one.name}"
                self.scopes[-1][one.name] = Symbol(unique)
                fields = {**one.__dict__, "name": unique}
                self.variables.append(Variable(**fields))
                if reader.at(";"):
                    break
                reader.expect(",")
        elif word == ".loc":
            file, line = reader.integer(), reader.integer()
            self.places.append((reader.line, f"{self.source.files.get(file, f'file {file}')}:{line}"))
            at = reader.line
            while reader.next.line == at and reader.next.text not in ("", "}"):
                reader.take()
        elif word == ".pragma":
            while reader.take() != ";":
                pass
        else:
            raise damaged(reader.line, f"the directive `{word}` is not known")

    def _registers(self) -> None:
        reader = self.reader
        kind = reader.take().removeprefix(".")
        if kind != "pred" and kind not in BYTES:
            raise damaged(reader.line, f"registers of the type .{kind} are not known")
        while True:
            name = reader.take()
            if reader.at("<"):
                count = reader.integer()
                self.ranges[-1][name] = (len(self.registers), count, kind)
                self.registers.extend([kind] * count)
                reader.expect(">")
            else:
                self.scopes[-1][name] = Register(len(self.registers), kind)
                self.registers.append(kind)
            if reader.at(";"):
                return
            reader.expect(",")

    def _named(self, name: str) -> Register | Symbol:
        for scope, ranges in zip(reversed(self.scopes), reversed(self.ranges), strict=True):
            if (found := scope.get(name)) is not None:
                return found
            match = _RANGE.fullmatch(name) if ranges else None
            if match and match[1] in ranges:
                start, count, kind = ranges[match[1]]
                if int(match[2]) < count:
                    scope[name] = found = Register(start + int(match[2]), kind)
                    return found
        return Symbol(name)

    def _instruction(self, word: str) -> None:
        reader = self.reader
        line = reader.line
        guard: Register | Negated | None = None
        if word == "@":
            negated = reader.at("!")
            register = self._named(reader.take())
            if not isinstance(register, Register) or register.type != "pred":
                raise damaged(reader.line, "a guard is no predicate register")
            guard = Negated(register) if negated else register
            word = reader.take()
            line = reader.line
        operands: list[Operand] = []
        while not reader.at(";"):
            operands.append(self._operand())
            if not reader.at(",") and reader.next.text != ";":
                raise damaged(reader.line, f"expected `,` or `;` in `{word}`, not `{reader.next.text}`")
        if word.split(".")[0] in ("bra", "brx"):
            operands = [self._target(one) for one in operands]
        self.body.append(Instruction(word, guard, tuple(operands), line))

    def _target(self, operand: Operand) -> Operand:
        """A label, which is one of this block or of one around it; it may come later."""
        if not isinstance(operand, Symbol):
            return operand
        return Symbol("\0".join(prefix + operand.name for prefix in reversed(self.prefixes)))

    def _operand(self) -> Operand:
        reader = self.reader
        word = reader.take()
        if word == "[":
            return self._address()
        if word == "{":
            items = [self._operand()]
            while reader.at(","):
                items.append(self._operand())
            reader.expect("}")
            return Vector(tuple(items))
        if word == "(":
            names: list[Operand] = []
            while not reader.at(")"):
                names.append(self._operand())
                reader.at(",")
            return Group(tuple(names))
        one = self._simple(word)
        if reader.at("|"):
            return Pair(one, self._simple(reader.take()))
        return one

    def _simple(self, word: str) -> Operand:
        reader = self.reader
        if word == "!":
            register = self._named(reader.take())
            if not isinstance(register, Register):
                raise damaged(reader.line, "`!` stands before no register")
            return Negated(register)
        if word in ("-", "~"):
            value = self._simple(reader.take())
            if not isinstance(value, Immediate) or value.kind != "int":
                raise damaged(reader.line, f"`{word}` stands before no integer")
            return Immediate("int", -value.value if word == "-" else ~value.value)
        if word[0].isdigit():
            if _FLOAT.fullmatch(word):
                return Immediate("f32" if word[1] in "fF" else "f64", int(word[2:], 16))
            if _INTEGER.fullmatch(word):
                return Immediate("int", _number(word))
            if re.fullmatch(r"\d+\.\d*(?:[eE]\d+)?", word):
                return Immediate("f64", struct.unpack("<Q", struct.pack("<d", float(word)))[0])
            raise damaged(reader.line, f"`{word}` is no number")
        if not re.match(r"[%$_A-Za-z]", word):
            raise damaged(reader.line, f"`{word}` is no operand")
        return self._named(word)

    def _address(self) -> Address | Other:
        reader = self.reader
        word = reader.take()
        base = self._simple(word)
        offset = 0
        if isinstance(base, Immediate):
            offset = base.value
        elif not isinstance(base, Register | Symbol):
            raise damaged(reader.line, "an address begins with no register, name or number")
        if reader.at("+") or reader.next.text == "-":
            offset += reader.integer()
        if reader.next.text in (",", "{"):
            # Textures, surfaces and tensors.
            words = [word]
            while (taken := reader.take()) != "]":
                words.append(taken)
            return Other(f"[{' '.join(words)}]")
        reader.expect("]")
        return Address(None if isinstance(base, Immediate) else base, offset)

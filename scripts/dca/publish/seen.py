"""Remembers the newest signed statement of each index, so that an older one is noticed when it is served again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import ClassVar

from dca.foundation import documents, store
from dca.foundation.documents import Document, Value
from dca.publish.statement import Signed
from dca.publish.values import Id, Number, Sha256, Time
from dca.trust.verify import Finding

CHECK = "age"
# A clock may be this much ahead of another.
_AHEAD = timedelta(days=1)


class Last(Value):
    """The newest statement of an index that was seen.

    Args:
        number: of the statement.
        signed: when, UTC.
        sha256: of its payload.
    """

    number: Number
    signed: Time
    sha256: Sha256


class Seen(Document):
    """The indexes of one signer.

    Args:
        indexes: the newest statement by the index's own number.
        places: the index's own number by the URL or folder that it was seen at.
    """

    SCHEMA: ClassVar[str] = "dca.seen-indexes/1"

    indexes: dict[Id, Last] = {}
    places: dict[str, Id] = {}


@dataclass(frozen=True)
class Memory:
    """What is known of the age of statements.

    Args:
        cache: where the newest ones are kept; None for nowhere.
        most_days: oldest age that is accepted; None for any.
    """

    cache: store.Store | None = None
    most_days: int | None = None

    def check(self, place: str, signer: str, signed: Signed) -> Finding:
        """Compare a statement, whose signature was checked, with what was seen before, and remember it.

        Args:
            place: URL or folder of the index.
            signer: who signed.
            signed: the statement.
        """
        about, now = signed.statement, datetime.now(timezone.utc)
        when = datetime.strptime(about.signed, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
        path = self._path(signer)
        known = (documents.read_if_whole(Seen, path) if path else None) or Seen()
        last = known.indexes.get(about.index)
        this = Last(number=about.number, signed=about.signed, sha256=store.sha256_bytes(signed.payload()))
        if wrong := _wrong(last, this, known.places.get(place, about.index) == about.index, path):
            return Finding(check=CHECK, status="wrong", says=wrong)
        if path:
            newest = {"indexes": known.indexes | {about.index: this}, "places": known.places | {place: about.index}}
            documents.write(known.model_copy(update=newest), path)
        if when > now + _AHEAD:
            return Finding(
                check=CHECK, status="wrong", says=f"it was signed on {about.signed}, which is in the future."
            )
        if self.most_days is not None and when < now - timedelta(days=self.most_days):
            says = f"it was signed on {about.signed}, more than {self.most_days} days ago (--max-age)."
            return Finding(check=CHECK, status="wrong", says=says)
        if last:
            says = f"it was signed on {about.signed}; no newer statement was seen on this machine."
            return Finding(check=CHECK, status="proven", says=says)
        limit = "" if self.most_days is None else f" of at most {self.most_days} days"
        says = (
            f"that it is the newest state: a first visit cannot detect an older one{limit} (signed on {about.signed})."
        )
        return Finding(check=CHECK, status="not proven", says=says)

    def _path(self, signer: str) -> Path | None:
        if self.cache is None:
            return None
        return self.cache.root / "index-seen" / f"{hashlib.sha256(signer.encode()).hexdigest()[:32]}.json"


def _wrong(last: Last | None, this: Last, same: bool, path: Path | None) -> str:
    """What is wrong with a statement after what was seen before; empty if nothing is."""
    if not same:
        return f"another index by the same signer was seen here before; if it was made anew, delete {path}."
    if last and this.number < last.number:
        return (
            f"an old state is served: it was signed on {this.signed}, and a newer one of {last.signed} was seen before."
        )
    if last and this.number == last.number and this != last:
        return f"two statements with the number {this.number} were seen, of {last.signed} and {this.signed}."
    return ""

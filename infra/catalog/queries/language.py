"""The language of questions: conditions on faces, read by a grammar, and made into SQLAlchemy's expressions.

    expression = happiness and quality > 0.7 and not collection = private
    taken >= 1920 and taken < 1930-06 and (person ~ "Marie" or person is unknown)
    age > 60 and age.confidence >= 0.8

A question never becomes SQL text: words are looked up among the fields and attributes that there are, values are bound.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from lark import Lark, Token, Transformer, Tree
from lark.exceptions import UnexpectedInput, UnexpectedToken, VisitError
from sqlalchemy import ColumnElement, SQLColumnExpression, and_, exists, func, not_, or_, select
from sqlalchemy.orm import Session

from infra.asked import AskedWrongly
from infra.catalog.collections import UnknownCollection
from infra.catalog.identities import decisions
from infra.catalog.queries import attributes
from infra.catalog.queries.attributes import having
from infra.catalog.queries.filters import AttributeFilter, FaceFilter, InvalidFilter
from infra.catalog.sides import by_index, by_rows, in_letters
from infra.catalog.tables.schema import Attribute, Collection, Content, Face, FaceIdentity, Identity, Image, ImageStatus
from infra.catalog.versioning.versions import serving
from infra.catalog.visibility import visible

LONGEST = 1000  # characters
DEEPEST = 20  # and, or, not within each other; somewhat over 30, SQLite's parser overflows

GRAMMAR = r"""
    start: any
    ?any: all | all (_OR all)+      -> any_of
    ?all: one | one (_AND one)+     -> all_of
    ?one: _NOT one                  -> negated
        | "(" any ")"
        | NAME OPERATOR value       -> compared
        | NAME _IN "(" value ("," value)* ")" -> among
        | NAME _IS KNOWN            -> known
    value: QUOTED | DATE | NUMBER | NAME | WORD
    _OR.2: /or\b/i
    _AND.2: /and\b/i
    _NOT.2: /not\b/i
    _IN.2: /in\b/i
    _IS.2: /is\b/i
    KNOWN.2: /(un)?known\b/i
    OPERATOR: "<=" | ">=" | "!=" | "=" | "<" | ">" | "~"
    DATE.2: /\d{4}-\d{2}(-\d{2})?(?![\w.\-\/])/
    NUMBER.1: /-?\d+(\.\d+)?(?![\w.\-\/])/
    WORD.-1: /[\w.\-\/]+/
    NAME: /[^\W\d][\w.\-\/]*/
    QUOTED: /"[^"]*"|'[^']*'/
    %ignore /\s+/
"""
# The end of each word of a date: 1920 is a year, 1920-06 a month.
WORDS_OF_A_DATE = (4, 7, 10)
EQUAL = ("=", "!=")
SENSITIVE = "Sensitive attributes, like age, are there once a collection that was added with --sensitive is processed"
NUMBER = re.compile(r"-?\d+(\.\d+)?")
LAST_YEAR = "9998"  # the last whose next one is a year to Python

Clause = ColumnElement[bool]
Column = SQLColumnExpression[Any]


class InvalidQuestion(AskedWrongly):
    """A question that cannot be read, or asks for what there is not. The message says where, and what there is."""


@dataclass(frozen=True)
class _Field:
    """What a word stands for: the condition that some value of it fulfils a comparison, and that there is one."""

    compare: Callable[[str, str], Clause]
    known: Callable[[], Clause]


def clause(session: Session, question: str) -> Clause:
    """Read a question as a condition on `Face`; faces whose photos are gone never fulfil it. An empty one means all faces.

    `!=` asks for another value, `not` also for none.

    Raises:
        InvalidQuestion: naming the place, or the words that there are.
    """
    if len(question) > LONGEST:
        raise InvalidQuestion(f"the question has {len(question):,} characters; at most {LONGEST:,} are read")
    if not question.strip():
        return visible()
    try:
        read = _parser().parse(question)
        if _depth(read) > DEEPEST:
            raise InvalidQuestion(
                f"and, or and not stand more than {DEEPEST} deep in each other; ask in several questions"
            )
        meant = _Reader(session).transform(read)
    except UnexpectedInput as error:
        at = len(question) if _at_end(error) else error.pos_in_stream or 0
        place = question[:at] + " >>> " + question[at:]
        raise InvalidQuestion(
            f"this cannot be read from >>> on: {place.strip()}. Write like: expression = happiness and quality > 0.7"
        ) from None
    except VisitError as error:
        if isinstance(error.orig_exc, AskedWrongly):
            raise error.orig_exc from None
        raise
    return and_(visible(), meant)


def _depth(read: Tree[Token]) -> int:
    """How many and, or, not stand within each other."""
    depth, level = 0, [read]
    while level := [child for tree in level for child in tree.children if isinstance(child, Tree)]:
        depth += any(tree.data in ("any_of", "all_of", "negated") for tree in level)
    return depth


def _at_end(error: UnexpectedInput) -> bool:
    return isinstance(error, UnexpectedToken) and error.token.type == "$END"


class _Reader(Transformer[Token, Clause]):
    """Makes conditions of what the grammar has found."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        version = serving(session)
        self.session = session
        self.fields = fields(session, None if version is None else version.id)
        self.attributes = attributes.names(session)

    def start(self, found: list[Clause]) -> Clause:
        return found[0]

    def any_of(self, found: list[Clause]) -> Clause:
        return or_(*found)

    def all_of(self, found: list[Clause]) -> Clause:
        return and_(*found)

    def negated(self, found: list[Clause]) -> Clause:
        return not_(found[0])

    def value(self, found: list[Token]) -> str:
        token = found[0]
        return token[1:-1] if token.type == "QUOTED" else str(token)

    def compared(self, found: list[Any]) -> Clause:
        name, operator, value = found
        return self._field(name).compare(str(operator), value)

    def among(self, found: list[Any]) -> Clause:
        name, *values = found
        return or_(*(self._field(name).compare("=", value) for value in values))

    def known(self, found: list[Token]) -> Clause:
        name, word = found
        there = self._field(name).known()
        return there if word.lower() == "known" else not_(there)

    def _field(self, name: Token) -> _Field:
        word, _, part = str(name).partition(".")
        if name in self.fields:
            return self.fields[name]
        if word in self.attributes and part in ("", "confidence"):
            return _attribute(self.session, word, of_confidence=bool(part))
        there = ", ".join([*self.fields, *self.attributes])
        raise InvalidQuestion(
            f"{str(name)!r} is nothing that can be asked for; there are {there}, and .confidence of an attribute. {SENSITIVE}"
        )


def fields(session: Session, serving_id: int | None) -> dict[str, _Field]:
    """The words for what every face has, or may have. Persons are those of one embedding version."""
    content = Content.id == Face.content_id
    present = Image.status != ImageStatus.MISSING.value
    image = and_(Image.content_id == Face.content_id, present)
    served = FaceIdentity.model_version_id == serving_id
    member = and_(FaceIdentity.face_id == Face.id, served)

    def photo(op: str, value: str) -> Clause:
        test = _text(in_letters(session, Image.key) if op == "~" else Image.key, op, value)
        if op == "=":  # by the index over the keys of each collection
            test = and_(Image.collection_id.in_(select(Collection.id)), test)
        rows = select(Image.content_id).where(present, test, Image.content_id.is_not(None))
        return by_rows(session, Face.content_id, rows, exists().where(image, test))

    def of_content(test: Callable[[str, str], Clause], there: Clause) -> _Field:
        def compare(op: str, value: str) -> Clause:
            meant = test(op, value)
            return by_rows(session, Face.content_id, select(Content.id).where(meant), exists().where(content, meant))

        return _Field(compare, lambda: exists().where(content, there))

    def person(op: str, value: str) -> Clause:
        if value.isdecimal() and op in EQUAL:
            _check(session, FaceFilter(identity_id=int(value)))
            test = _number(Identity.id, op, str(decisions.identity(session, int(value)).id))
        else:
            test = _text(Identity.name, op, value)
        each = exists().where(member, Identity.id == FaceIdentity.identity_id, test)
        if op == "!=":  # nearly everybody
            return each
        meant = FaceIdentity.identity_id.in_(select(Identity.id).where(test))
        return by_rows(session, Face.id, select(FaceIdentity.face_id).where(served, meant), each)

    def quality(op: str, value: str) -> Clause:
        return by_index(session, Face.id, Face.quality, lambda column: _number(column, op, value))

    def of_face(column: Column) -> _Field:
        return _Field(lambda op, value: _number(column, op, value), lambda: column.is_not(None))

    def collection(op: str, value: str) -> Clause:
        if op in EQUAL:
            _check(session, FaceFilter(collections=(value,)))
        return Content.collection_id.in_(select(Collection.id).where(_text(Collection.name, op, value)))

    return {
        "collection": of_content(collection, Content.id.is_not(None)),
        "photo": _Field(photo, lambda: exists().where(image)),
        "taken": of_content(lambda op, value: _date(Content.taken_at, op, value), Content.taken_at.is_not(None)),
        "found": _Field(lambda op, value: _moment(Face.found_at, op, value), lambda: Face.found_at.is_not(None)),
        "person": _Field(person, lambda: exists().where(member, FaceIdentity.identity_id.is_not(None))),
        "quality": _Field(quality, lambda: Face.quality.is_not(None)),
        "score": of_face(Face.score),
        "width": of_face(Face.x2 - Face.x1),
        "height": of_face(Face.y2 - Face.y1),
    }


def _attribute(session: Session, name: str, of_confidence: bool) -> _Field:
    def compare(op: str, value: str) -> Clause:
        if of_confidence:
            return having(session, name, _number(Attribute.confidence, op, value))
        if NUMBER.fullmatch(value):
            return having(session, name, Attribute.label.is_(None), _number(Attribute.value, op, value))
        if op in EQUAL:
            _check(session, FaceFilter(attributes=(AttributeFilter(name=name, label=value),)))
        return having(session, name, _text(Attribute.label, op, value))

    return _Field(compare, lambda: having(session, name))


def _check(session: Session, named: FaceFilter) -> None:
    """See that what is named is there: a misspelt name would be answered by no faces, or by all."""
    try:
        named.check(session)
    except (InvalidFilter, UnknownCollection) as error:
        raise InvalidQuestion(str(error)) from None


def _number(column: Column, op: str, value: str) -> Clause:
    if not NUMBER.fullmatch(value):
        raise InvalidQuestion(f"{value!r} is compared with a number; write one, like 0.7")
    number = float(value)
    match op:
        case "=":
            return column == number
        case "!=":
            return column != number
        case "<":
            return column < number
        case "<=":
            return column <= number
        case ">":
            return column > number
        case ">=":
            return column >= number
    raise InvalidQuestion(f"~ asks for a part of a text, and {value!r} is compared with a number")


def _text(column: Column, op: str, value: str) -> Clause:
    match op:
        case "=":
            return column == value
        case "!=":
            return column != value
        case "~":
            return column.icontains(value, autoescape=True)
    raise InvalidQuestion(f"{value!r} is a text: it is compared with =, != or ~ (contains), not with {op}")


def _date(column: Column, op: str, text: str) -> Clause:
    """Compare as many words of a date as are given: 1920-06 is a month, and <= 1920 includes all of that year."""
    read_date(text)
    words = func.substr(column, 1, len(text))
    tests = {"=": words == text, "!=": words != text, "<": words < text, "<=": words <= text, ">": words > text}
    if op == "~":
        raise InvalidQuestion(f"{text} is a date: it is compared with =, !=, <, <=, > or >=")
    return tests.get(op, words >= text)


def _moment(column: Column, op: str, value: str) -> Clause:
    """The same for a point in time, by UTC's days."""
    first = read_date(value)
    days = {4: 366, 7: 31}.get(len(value), 1)
    after = read_date((first + timedelta(days=days)).isoformat()[: len(value)])
    within = and_(column >= first, column < after)
    tests = {"=": within, "!=": not_(within), "<": column < first, "<=": column < after, ">": column >= after}
    if op == "~":
        raise InvalidQuestion(f"{value} is a date: it is compared with =, !=, <, <=, > or >=")
    return tests.get(op, column >= first)


def read_date(text: str) -> datetime:
    """When a year, month or day begins.

    Raises:
        InvalidQuestion: for anything else.
    """
    try:
        if len(text) not in WORDS_OF_A_DATE or text > LAST_YEAR:
            raise ValueError
        return datetime.fromisoformat(text + "0000-01-01"[len(text) :]).replace(tzinfo=UTC)
    except ValueError:
        raise InvalidQuestion(f"{text!r} is no date; write 1920, 1920-06 or 1920-06-30") from None


@cache
def _parser() -> Lark:
    """Made at the first question: its tables take a tenth of a second."""
    return Lark(GRAMMAR, parser="lalr", maybe_placeholders=False)

"""Views beside the tables, where several charts want the same; made anew with the mart.

Names within are found in the mart itself: write them without the schema.
"""

from __future__ import annotations

from typing import LiteralString

VIEWS: dict[str, LiteralString] = {}
"""Name → the query."""

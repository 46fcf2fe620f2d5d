"""`grid.Map` and `grid.List`: stored entry by entry, never loaded whole, and changes in place are not lost."""

from __future__ import annotations

import asyncio
import dataclasses

from example_grid import example_grid

from actorgrid import grid


@dataclasses.dataclass
class Article:
    """What a warehouse knows of one article."""

    name: str
    stock: int = 0
    tags: list[str] = dataclasses.field(default_factory=list)


@grid.actor
class Warehouse:
    """Any number of articles, and everything that ever happened to them: it may be larger than memory."""

    articles: grid.Map[str, Article]
    history: grid.List[tuple[str, int]]

    async def receive(self, number: str, name: str, count: int) -> int:
        """Put `count` pieces on the shelf; how many lie there now."""
        article = self.articles.setdefault(number, Article(name))
        article.stock += count  # in place: no need to set the entry again
        self.history.append((number, count))
        return article.stock

    async def tag(self, number: str, tag: str) -> None:
        """Add a tag."""
        self.articles[number].tags.append(tag)  # a list in a dataclass in a Map: seen all the same

    @grid.read
    async def read_article(self, number: str) -> Article | None:
        """One look-up, however many articles there are."""
        return self.articles.get(number)

    @grid.read
    async def read_page(self, start: str, limit: int) -> list[tuple[str, Article]]:
        """Articles in the order of their numbers: a Map is sorted, and a range of it costs no more than what it returns."""
        return list(self.articles.scan(start, limit=limit))

    @grid.read
    async def read_last(self, count: int) -> list[tuple[str, int]]:
        """The end of the history; the slice loads nothing else."""
        return self.history[-count:]

    @grid.read
    async def read_sizes(self) -> tuple[int, int]:
        """Entries in both; ``len`` counts nothing, it is stored."""
        return len(self.articles), len(self.history)


async def main(address: str) -> None:
    async with grid.connect(address) as client:
        north = client.get(Warehouse, "north")
        for number in range(100):
            await north.receive(f"A-{number:03}", f"article {number}", number + 1)
        await north.tag("A-007", "fragile")
        await north.tag("A-007", "heavy")
        print("tagged in place:", await north.read_article("A-007"))
        print("no such article:", await north.read_article("B-001"))
        print("a page:", [number for number, _ in await north.read_page("A-050", limit=3)])
        print("last of the history:", await north.read_last(2))
        print("sizes:", await north.read_sizes())


if __name__ == "__main__":
    with example_grid("collections_example") as address:
        asyncio.run(main(address))

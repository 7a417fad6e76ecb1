"""What the emulated model says: readable sentences, a function of weights, prompt and seed.

Sentences are put together from parts, so that two seeds hardly ever begin alike, and every part is tokenised once
and then reused: an answer costs a few table look-ups, not a forward pass.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from typing import Any

from emulated_cloud.engine.tokenizer import Tokenizer


def parts(blocks: str) -> list[list[str]]:
    """Alternatives for each place in a sentence: a paragraph a place; `_` stands for a space within one."""
    return [block.split() for block in blocks.strip().split("\n\n")]


ENGLISH = parts("""
The An_old A_quiet One Our Their Every_patient The_northern That A_careful The_second Her

harbor lantern orchard bridge library mountain engine garden river workshop valley teacher market compass island
window

keeps carries remembers holds follows measures repairs gathers watches describes counts shares

seven two several twelve many nine four a_hundred some thirty

letters stars maps songs seeds bells stories ropes clocks boats apples stones

near_the_old_mill. before_the_rain_begins. along_the_northern_road. until_the_evening.
for_the_people_downstream. while_the_town_sleeps. under_a_pale_sky. without_a_single_mistake.
""")
KOREAN = parts("""
오래된 조용한 우리 마을의 북쪽 부지런한 두_번째 작은 먼 그녀의 푸른 모든

항구는 등대는 과수원은 다리는 도서관은 산은 정원은 강은 작업장은 골짜기는 선생님은 시장은 나침반은 섬은

비가_오기_전에 저녁까지 강을_따라 하얀_하늘_아래에서 봄마다 말없이 날마다 오솔길_옆에서

편지 별 지도 노래 씨앗 종 이야기 밧줄 시계 돛단배 사과 조약돌

일곱_개를 두_개를 여러_개를 열두_개를 아홉_개를 네_개를 서른_개를

간직한다. 나른다. 기억한다. 따라간다. 잰다. 고친다. 모은다. 바라본다. 헤아린다. 나눈다.
""")
HANGUL = re.compile(r"[가-힣]")


def seed_of(*parts: Any) -> int:
    """A number that depends on every part and on nothing else."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")


def is_korean(prompt: str) -> bool:
    """Whether the prompt's last part (the question, not the conversation before it) has Hangul in it."""
    return HANGUL.search(prompt[-400:]) is not None


def sentence(rng: random.Random, korean: bool) -> str:
    return " ".join(rng.choice(choices).replace("_", " ") for choices in (KOREAN if korean else ENGLISH))


def pieces(tokenizer: Tokenizer, seed: int, korean: bool) -> Iterator[tuple[int, str] | None]:
    """An endless answer as (token, text) pairs; None wherever the model would rather stop."""
    rng = random.Random(seed)
    first, length = True, rng.randint(2, 4)
    while True:
        for _ in range(length):
            for part in sentence(rng, korean).split(" "):
                yield from tokenizer.pieces(part if first else " " + part)
                first = False
        yield None


def padding() -> Iterator[tuple[int, str] | None]:
    """What greedy decoding yields when all logits are the same: token 0, which is <pad>, and never an end."""
    while True:
        yield 0, ""

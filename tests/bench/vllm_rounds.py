"""Rounds of `vllm bench serve`, in one process, as they are asked for: run by the Python of the real part `vllm`.

Each line of stdin is JSON: a round, {"argv": its command line, "questions": [text], "tokens": of each answer}, or
answers to judge, {"answers": [{"ttft", "itl", "latency", "tokens"}], "seconds", "percentiles"}. Each line of the file
that the first argument names is what vLLM found, after a `{}` when it is ready. stdout is vLLM's own.

vLLM's datasets need pandas, which a server does not: the questions are given to it as its datasets give them.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    from vllm.benchmarks import serve  # type: ignore[import-not-found]
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]

    with open(sys.argv[1], "w", buffering=1) as answers:
        answers.write("{}\n")
        for line in sys.stdin:
            asked = json.loads(line)
            if "answers" in asked:
                result = judged(serve, asked)
            else:
                parser = FlexibleArgumentParser()
                serve.add_cli_args(parser)
                serve.get_samples = lambda _, tokenizer, asked=asked: samples(asked, tokenizer)
                result = serve.main(parser.parse_args(asked["argv"]))
            answers.write(json.dumps(result, default=float) + "\n")


def samples(asked: dict[str, Any], tokenizer: Any) -> list[Any]:
    from vllm.benchmarks.datasets import SampleRequest  # type: ignore[import-not-found]

    return [
        SampleRequest(prompt=text, prompt_len=len(tokenizer(text).input_ids), expected_output_len=asked["tokens"])
        for text in asked["questions"]
    ]


def judged(serve: Any, asked: dict[str, Any]) -> dict[str, Any]:
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput  # type: ignore[import-not-found]

    outputs = [
        RequestFuncOutput(
            success=True,
            ttft=answer["ttft"],
            itl=answer["itl"],
            latency=answer["latency"],
            output_tokens=answer["tokens"],
            prompt_len=1,
        )
        for answer in asked["answers"]
    ]
    figures, _ = serve.calculate_metrics([], outputs, asked["seconds"], None, asked["percentiles"], {})
    return vars(figures)


if __name__ == "__main__":
    main()

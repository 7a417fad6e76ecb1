"""The gemma-pipelines command: one module a group of commands; heavy imports happen inside them.

Data goes to stdout, the rest to stderr. Exit codes: 0 done, 1 the run or its validation failed, 2 the request was wrong
(nothing on stdout then), 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from pipelines.cli import files, operate, run, weights

app = typer.Typer(
    name="gemma-pipelines",
    help="Take a Gemma release on Hugging Face to a validated, serving vLLM on GKE.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(files.list_scenarios)
app.command()(files.init)
app.command()(run.run)
app.command()(files.compile)
app.command()(files.render)
app.command()(operate.promote)
app.command()(operate.rollback)
app.command()(operate.report)
app.command("verify-weights")(weights.verify_weights)


def main() -> None:
    """Runs the command; maps errors to messages and exit codes, once."""
    from serving import log
    from serving.errors import PipelineError, RequestError

    log.silence_libraries()
    try:
        app()
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == 130:  # Typer has made it of a KeyboardInterrupt, without a word.
            print("interrupted", file=sys.stderr)
        raise
    except BrokenPipeError:
        # Whoever read our output has enough.
        sys.stderr.close()
        sys.exit(1)

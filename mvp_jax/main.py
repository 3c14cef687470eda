"""The command line of all jobs: `python -m mvp_jax.main --config=configs/mvp.py --workdir=DIR`.

This file has the flags only; what a job does is in `mvp_jax.experiments`.
"""

import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from mvp_jax.experiments import command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, an argument after a colon.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where all is written; a killed run is continued.", required=True)


def main(argv: Sequence[str]) -> None:
    """Runs the job of the config that the flags name, by `experiments.run.run`.

    Args:
        argv: the program's name, and the words of the command line that are no flags.

    Raises:
        SystemExit: with one line in the place of a traceback, if there are words that are no flags, or the library
            refuses the config, the data, a checkpoint or the folder; with status 130 after Ctrl-C.
    """
    if len(argv) > 1:
        raise SystemExit(f"error: unknown arguments {argv[1:]}; settings are given as --config.name=value")
    # Orbax reports every write; only the job's own progress is worth a line here.
    logging.set_verbosity(logging.WARNING)
    try:
        from mvp_jax.experiments import compilation, run

        config = _CONFIG.value
        with compilation.announced(compilation.keep(config.get("compilation_cache", "auto"))):
            run.run(config, _WORKDIR.value)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command goes on from what is saved\n")
        raise SystemExit(130) from None
    except ValueError as error:
        if not command_line.ours(error):
            raise
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=command_line.parse)

"""``python -m fairlead_cli`` and the console scripts ``fairlead`` and ``kubectl-fairlead``."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Runs one verb; an error that the user can correct becomes one line on stderr and exit code 2.

    Why: all imports are inside, so that Ctrl-C during start-up ends as quietly as later.
    """
    try:
        from pathlib import Path

        from cyclopts import CycloptsError

        from fairlead.errors import FairleadError, plain_text
        from fairlead_cli.app import build_app, with_default_verb
        from fairlead_cli.console import allow_any_encoding
        from fairlead_cli.exit_codes import describe_error
        from fairlead_cli.usage_errors import usage_message

        allow_any_encoding()
        try:
            arguments = with_default_verb(sys.argv[1:])
            app = build_app(Path(sys.argv[0]).name, arguments)
            app(arguments, exit_on_error=False, print_error=False)
        except CycloptsError as error:
            print(plain_text(f"fairlead: {usage_message(error, app.name[0])}"), file=sys.stderr)
            sys.exit(2)
        except FairleadError as error:
            print(plain_text(f"fairlead: {describe_error(error)}"), file=sys.stderr)
            sys.exit(2)
        except ImportError as error:
            from fairlead.distribution import missing_package, missing_package_message

            package = missing_package(error)
            if package is None:
                raise
            print(f"fairlead: {missing_package_message(package)}", file=sys.stderr)
            sys.exit(2)
        except BrokenPipeError:
            sys.exit(0)
        except OSError as error:
            if error.filename is None:
                raise
            print(f"fairlead: {error.filename} cannot be used: {error.strerror}", file=sys.stderr)
            sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()

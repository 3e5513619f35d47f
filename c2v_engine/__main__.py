"""``python -m c2v_engine`` is ``c2v``."""

from c2v_engine.cli import main

if __name__ == "__main__":
    main()

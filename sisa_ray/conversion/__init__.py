"""From the files that users have to Parquet that ``sisa-ray ingest`` takes; and data of the paper's shape."""

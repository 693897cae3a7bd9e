"""Pages over what `forecasting` wrote. Importing this package imports no page."""

FOLDER = "MNEMO_RESULTS"  # the environment variable that tells the pages where the results are

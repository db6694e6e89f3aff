"""Parameters on disk: training checkpoints and other libraries' formats."""

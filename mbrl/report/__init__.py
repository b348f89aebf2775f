"""What people look at: report pages, figures, films, and the statistics behind them."""

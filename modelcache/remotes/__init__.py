"""Where bytes come from. Each module is one kind of source and translates its library's errors."""

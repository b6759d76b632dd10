"""One method on one request -> Run: lock, warm-up, timed repeats, traced run, cancel. The only clock."""

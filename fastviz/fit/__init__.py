"""What is fitted to a model before it is run: schedules. Not imported by the app."""

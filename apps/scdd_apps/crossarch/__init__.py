"""`scdd-apps crossarch`: do other architectures learn from the file as well as the run's own?"""

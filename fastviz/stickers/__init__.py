"""How the embedded model is made: world, autoencoder, teacher and judge. The app imports nothing of it."""

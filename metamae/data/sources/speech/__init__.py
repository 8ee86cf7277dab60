"""Speech as log-mel pictures: LibriSpeech, and the sets that its encoder is probed on."""

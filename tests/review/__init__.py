"""What a fresh-eyed review of the broker side has found, defect by defect."""

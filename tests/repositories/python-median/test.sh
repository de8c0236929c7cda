exec python3 -B -m unittest discover -q 2>&1

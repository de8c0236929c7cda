exec python3 -B -m unittest -q test_roman 2>&1

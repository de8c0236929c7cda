exec python3 -B -m unittest -q test_pages 2>&1

exec python3 -B -m unittest -q test_invoice 2>&1

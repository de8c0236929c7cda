exec perl test.pl

package Csv;
use strict;
use warnings;

# The fields of one line. A field may stand in double quotes; two of them within are one.
sub fields {
    my ($line) = @_;
    chomp $line;
    my @fields = split /,/, $line, -1;
    for (@fields) {
        s/^"(.*)"$/$1/;
        s/""/"/g;
    }
    return @fields;
}

1;

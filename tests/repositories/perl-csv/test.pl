use strict;
use warnings;
use lib '.';
use Csv;

my @cases = (
    ['a,b,c', 'a|b|c'],
    ['a,,', 'a||'],
    ['"a",b', 'a|b'],
    ['"a, b",c', 'a, b|c'],
    ['"say ""hi""",x', 'say "hi"|x'],
    ['"""",""', '"|'],
);
my $failed = 0;
for (@cases) {
    my ($line, $wanted) = @$_;
    my $got = join '|', Csv::fields("$line\n");
    next if $got eq $wanted;
    print "FAILED: <$line> gives <$got>, not <$wanted>\n";
    $failed = 1;
}
print "ok\n" unless $failed;
exit $failed;

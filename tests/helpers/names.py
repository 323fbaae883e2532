"""Names and cells from strangers, which a shell, a page, a spreadsheet or a library takes for something else."""

# Names of files, without a folder.
NAMES = [
    *(b"plain.png", b"two words.png", b" lead.png", b"trail.png ", b"  ", b"two  spaces.png", b"dot.", b"no suffix"),
    *(b"quote'.png", b'quote".png', b'"whole".png', b"'=1.png", b"`tick`.png", b"$(touch x).png", b"back\\slash.png"),
    *(b"new\nline.png", b"\nfirst.png", b"cr\r.png", b"\rfirst.png", b"crlf\r\n.png", b"tab\t.png", b"\tfirst.png"),
    *(b"\x1b[31mred.png", b"\x1b]0;title\x07.png", b"bell\x07.png", b"back\x08\x08.png", b"del\x7f.png", b"\x01.png"),
    *(b"#.png", b"?x=1.png", b"100%.png", b"%2e%2e.png", b"a&b.png", b"&lt;.png", b"<>.png", b"*.png", b"a;b,c.png"),
    *(b"-rf.png", b"--overwrite", b"=1+1.png", b"+1.png", b"@SUM(A1).png", b"=cmd|' -C calc'!A0.png", b"~", b"CON"),
    *(b"<img src=x onerror=alert(1)>.png", b"{{ 7 * 7 }}.png", b"a.JPG", b"b.jPeG", b"aux.txt", b"n" * 255),
    *(b"latin-\xe9.png", b"\xff\xfe.png", b"half \xf0\x9f\x98.png", "n\u0303".encode() + b"\x80", b"\xc0\xaf.png"),
    *("caf\xe9.png".encode(), "cafe\u0301.png".encode(), "\u202egnp.exe".encode(), "שלום.png".encode()),
    # For `datasets`, fsspec, pandas and tables of exports.
    *(b"test-1.png", b"val.png", b"a::b.png", b"[x].png", b"{a,b}.png", b"-.png", b"__x.png", b"a#b?c.png", b"~.png"),
    *(b"null.png", b"metadata.png"),
    *("\uff1d1+1.png".encode(), "\u2028.png".encode(), "👩\u200d🔬.png".encode(), "ﬁ\ufeff.png".encode()),
]
# Cells that a spreadsheet computes, and cells that look like them.
FORMULAS = [
    *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1+1", "\uff0b1", "\uff0d1", "\uff20x", "="),
    *("=cmd|' /C calc'!A0", '=HYPERLINK("http://x.invalid","y")', "-2+3+cmd|' /C calc'!A0", "@", "--x", "=\n=", "+\r"),
    *("=1,=2", '="a"', "'=1", "''=1", "./=1", "././-x", "'./=1", "./'=1"),
    *(" =1", "\u200b=1", "\ufeff\u00ad\xa0-1", "' =1", "./\u2066@x", "\u206a \u00ad\u3000+1", "\x1f=1", "  \t"),
]
HARMLESS = ["a.png", "'tis.png", "''", "./a.png", "././a", "a=1", " a=1", " '=1", "", ".=", "..", "./", "'", "1-1"]
HARMLESS += ["é", "/-x"]

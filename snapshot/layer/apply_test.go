package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"img/snapshot"
	"img/snapshot/attr"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// cap2 is cap_net_raw+ep in version 2; cap3 the same for a user namespace's root 1000.
// acl is user::rw-, user:1:r--, group::r--, mask::r--, other::r--.
const (
	cap2 = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	cap3 = "\x01\x00\x00\x03\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xe8\x03\x00\x00"
	acl  = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x01\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
)

// Each archive is applied beside files that must not change. Either want is the settled change set, or err a part of the
// error.
var applyCases = []struct {
	name  string
	items []item
	lower lower
	want  string
	err   string
}{
	// D01: names
	{name: "dot dot stops at the root", items: []item{file("../../../passwd", "x"), file("a/../../etc/passwd", "y")},
		want: "d etc 755\nf etc/passwd 644 size=1\nf passwd 644 size=1\n"},
	{name: "absolute, doubled slashes, trailing dot", items: []item{file("/a", "1"), dir("//b//"), file("./b//c", "2"), dir("d/.")},
		want: "f a 644 size=1\nd b 750\nf b/c 644 size=1\nd d 750\n"},
	{name: "empty name", items: []item{file("", "x")}, err: "empty name"},
	{name: "component of 255", items: []item{file(strings.Repeat("n", 255), "")}, want: "f " + strings.Repeat("n", 255) + " 644 size=0\n"},
	{name: "component of 256", items: []item{file(strings.Repeat("n", 256), "")}, err: "longer than 255"},
	{name: "whiteout of a component of 255", items: []item{file(".wh."+strings.Repeat("n", 255), "")}},
	{name: "path of 4096", items: []item{file(strings.Repeat("d/", 2047)+"ff", "")},
		want: dirs(2047) + "f " + strings.Repeat("d/", 2047) + "ff 644 size=0\n"},
	{name: "path of 4097", items: []item{file(strings.Repeat("d/", 2048)+"f", "")}, err: "longer than 4096"},
	{name: "invalid UTF-8, control characters", items: []item{file("a\xff", ""), file("b\n\x1b[2J", "")},
		want: "f a\xff 644 size=0\nf b\n\x1b[2J 644 size=0\n"},
	{name: "names that differ in case and Unicode form", items: []item{file("A", ""), file("a", ""), file("\u00e9", ""), file("e\u0301", "")},
		want: "f A 644 size=0\nf a 644 size=0\nf e\u0301 644 size=0\nf \u00e9 644 size=0\n"},

	// the root itself
	{name: "root entry", items: []item{dir("./").mode(0o711), file("a", "")}, want: "d . 711\nf a 644 size=0\n"},
	{name: "root is a link", items: []item{symlink(".", "/etc"), file("passwd", "x")}, err: "root is no directory"},
	{name: "root is a file", items: []item{file(".", "x")}, err: "root is no directory"},
	{name: "root is a hard link", items: []item{hard(".", "etc/passwd")}, err: "root is no directory"},

	// D02: what lies below a link
	{name: "below a relative link out", items: []item{symlink("l", "../.."), file("l/etc/passwd", "x")},
		want: "d etc 755\nf etc/passwd 644 size=1\nl l -> ../..\n"},
	{name: "below an absolute link", items: []item{symlink("l", "/etc"), file("l/passwd", "x"), file("l/sub/f", "y")},
		want: "d etc 755\nf etc/passwd 644 size=1\nd etc/sub 755\nf etc/sub/f 644 size=1\nl l -> /etc\n"},
	{name: "below a magic link", items: []item{symlink("l", "/proc/self/root/etc"), file("l/passwd", "x")},
		want: "l l -> /proc/self/root/etc\nd proc 755\nd proc/self 755\nd proc/self/root 755\nd proc/self/root/etc 755\nf proc/self/root/etc/passwd 644 size=1\n"},
	{name: "below a link to the root", items: []item{symlink("l", "/"), file("l/f", "x"), symlink("l/m", "..")},
		want: "f f 644 size=1\nl l -> /\nl m -> ..\n"},
	{name: "link below a link", items: []item{symlink("a", "b"), symlink("a/c", "/etc"), file("a/c/passwd", "x")},
		want: "l a -> b\nd b 755\nl b/c -> /etc\nd etc 755\nf etc/passwd 644 size=1\n"},
	{name: "chain of links", items: []item{symlink("a", "b"), symlink("b", "c"), dir("c"), file("a/f", "x")},
		want: "l a -> b\nl b -> c\nd c 750\nf c/f 644 size=1\n"},
	{name: "loop of links", items: []item{symlink("a", "b"), symlink("b", "a"), file("a/f", "x")}, err: "too many levels"},
	{name: "link to itself and below", items: []item{symlink("a", "a/a/a/a"), file("a/f", "x")}, err: "too many levels"},
	{name: "fifo below a link", items: []item{symlink("l", "../.."), fifo("l/p")}, want: "l l -> ../..\np p 600\n"},
	{name: "directory over a link keeps the link's target", items: []item{symlink("l", "../../etc"), dir("l").mode(0o777)},
		want: "d l 777\n"},
	{name: "file over a link", items: []item{symlink("l", "../../etc/passwd"), file("l", "x")}, want: "f l 644 size=1\n"},
	{name: "below a file", items: []item{file("f", "x"), file("f/g", "y")}, err: "not a directory"},
	{name: "below a fifo", items: []item{fifo("f"), file("f/g", "y")}, err: "not a directory"},
	{name: "below a device", items: []item{char("f", 1, 3), file("f/g", "y")}, err: "not a directory"},
	{name: "long link targets are data", items: []item{symlink("l", strings.Repeat("../", 1365))}, want: "l l -> " + strings.Repeat("../", 1365) + "\n"},
	{name: "link target of 4096", items: []item{symlink("l", strings.Repeat("a", 4096))}, err: "4096 bytes"},
	{name: "empty link target", items: []item{symlink("l", "")}, err: "0 bytes"},

	// D03: hard links
	{name: "hard link", items: []item{file("b", "x").owner(1, 2).mode(0o4755), hard("a", "b"), hard("c", "/b")},
		want: "f a 4755 1:2 size=1\nf b 4755 1:2 size=1 = a\nf c 4755 1:2 size=1 = a\n"},
	{name: "hard link to a link", items: []item{symlink("l", "/etc/passwd"), hard("h", "l")},
		want: "l h -> /etc/passwd\nl l -> /etc/passwd = h\n"},
	{name: "hard link out", items: []item{hard("h", "../../etc/passwd")}, err: "neither in the layer"},
	{name: "hard link out through a link", items: []item{symlink("l", "../../etc"), hard("h", "l/passwd")}, err: "neither in the layer"},
	{name: "written through a hard link", items: []item{file("a", "x"), hard("b", "a"), file("b", "yy")},
		want: "f a 644 size=1\nf b 644 size=2\n"},
	{name: "hard link to itself", items: []item{file("a", "x"), hard("a", "a")}, err: "to itself"},
	{name: "hard link to itself, missing", items: []item{hard("a", "./a")}, err: "to itself"},
	{name: "hard link to a directory", items: []item{dir("d"), hard("h", "d")}, err: "to a directory"},
	{name: "hard link to the root", items: []item{hard("h", "/")}, err: "to a directory"},
	{name: "hard link forward", items: []item{hard("h", "f"), file("f", "x")}, want: "f f 644 size=1\nf h 644 size=1 = f\n"},
	{name: "hard link over its own directory", items: []item{file("d/f", "x"), hard("d", "d/f")}, err: "no such file"},
	{name: "name of a hard link is used again", items: []item{file("a", "x"), hard("b", "a"), file("a", "yy"), hard("c", "a")},
		want: "f a 644 size=2\nf b 644 size=1\nf c 644 size=2 = a\n"},
	{name: "hard link into a lower layer", items: []item{hard("b/h", "a/f")}, lower: lower{ldir("a"), lfile("a/f")},
		want: "d a 711 7:0\nf a/f 4755 0:8 size=3\nd b 755\nf b/h 4755 0:8 size=3 = a/f\n"},
	{name: "three hard links into a lower layer", items: []item{hard("x", "f"), hard("y", "x"), hard("z", "f")}, lower: lower{lfile("f")},
		want: "f f 4755 0:8 size=1\nf x 4755 0:8 size=1 = f\nf y 4755 0:8 size=1 = f\nf z 4755 0:8 size=1 = f\n"},
	{name: "hard link to what the layer removes", items: []item{file(".wh.f", ""), hard("x", "f")}, lower: lower{lfile("f")},
		want: "x f\nf x 4755 0:8 size=1\n"},
	{name: "hard link to a lower link", items: []item{hard("x", "l")}, lower: lower{llink("l", "/etc")},
		want: "l l -> /etc\nl x -> /etc = l\n"},
	{name: "hard link to a lower directory", items: []item{hard("x", "d")}, lower: lower{ldir("d")}, err: "is a directory"},
	{name: "hard link that is replaced", items: []item{hard("x", "f"), file("x", "y")}, want: "f x 644 size=1\n"},
	{name: "hard link's target below a lower link", items: []item{hard("h", "lib/f")}, lower: lower{llink("lib", "usr/lib"), ldir("usr"), ldir("usr/lib"), lfile("usr/lib/f")},
		want: "f h 4755 0:8 size=9\nd usr 711 7:0\nd usr/lib 711 7:0\nf usr/lib/f 4755 0:8 size=9 = h\n"},

	// D04: whiteouts
	{name: "whiteout", items: []item{file("d/.wh.f", "")}, lower: lower{ldir("d"), lfile("d/f")}, want: "d d 711 7:0\nx d/f\n"},
	{name: "whiteout of a missing file", items: []item{dir("d"), file("d/.wh.f", "")}, want: "d d 750\n"},
	{name: "whiteout before its file", items: []item{file(".wh.f", ""), file("f", "new")}, lower: lower{lfile("f")}, want: "f f 644 size=3\n"},
	{name: "whiteout after its file", items: []item{file("f", "new"), file(".wh.f", "")}, lower: lower{lfile("f")}, want: "f f 644 size=3\n"},
	{name: "whiteout before its directory", items: []item{file(".wh.d", ""), dir("d"), file("d/new", "")}, lower: lower{ldir("d"), lfile("d/old")},
		want: "d d 750\nf d/new 644 size=0\nx d/old\n"},
	{name: "whiteout after its directory", items: []item{dir("d"), file("d/new", ""), file(".wh.d", "")}, lower: lower{ldir("d"), lfile("d/old")},
		want: "d d 750\nf d/new 644 size=0\nx d/old\n"},
	{name: "whiteout of an implicit directory", items: []item{file(".wh.d", ""), file("d/new", "")}, lower: lower{ldir("d"), lfile("d/old")},
		want: "d d 711 7:0\nf d/new 644 size=0\nx d/old\n"},
	{name: "opaque before children", items: []item{dir("d"), file("d/.wh..wh..opq", ""), file("d/s/new", "")},
		lower: lower{ldir("d"), lfile("d/old"), ldir("d/s"), lfile("d/s/old"), ldir("d/t"), lfile("d/t/x")},
		want:  "d d 750\nx d/old\nd d/s 755\nf d/s/new 644 size=0\nx d/s/old\nx d/t\n"},
	{name: "opaque after children", items: []item{file("d/old", "new"), file("d/.wh..wh..opq", "")}, lower: lower{ldir("d"), lfile("d/old"), lfile("d/x")},
		want: "d d 711 7:0\nf d/old 644 size=3\nx d/x\n"},
	{name: "opaque and whiteouts", items: []item{file("d/.wh..wh..opq", ""), file("d/.wh.a", ""), file("d/.wh.none", "")}, lower: lower{ldir("d"), lfile("d/a"), lfile("d/b")},
		want: "d d 711 7:0\nx d/a\nx d/b\n"},
	{name: "opaque in the first layer", items: []item{dir("d"), file("d/.wh..wh..opq", ""), file("d/f", "")}, want: "d d 750\nf d/f 644 size=0\n"},
	{name: "opaque root", items: []item{file(".wh..wh..opq", ""), file("d/new", "")}, lower: lower{ldir("d"), lfile("d/old"), lfile("f"), ldir("g"), lfile("g/h")},
		want: "d d 755\nf d/new 644 size=0\nx d/old\nx f\nx g\n"},
	{name: "whiteouts of no name", items: []item{file("d/.wh.", "")}, err: "no name"},
	{name: "whiteout of dot", items: []item{file(".wh..", "")}, err: "no name"},
	{name: "whiteout of dot dot", items: []item{file("d/.wh...", "")}, err: "no name"},
	{name: "whiteout of a hidden file", items: []item{file(".wh..x", "")}, lower: lower{lfile(".x")}, want: "x .x\n"},
	{name: "whiteout through a link out", items: []item{symlink("l", "../../etc"), file("l/.wh.passwd", "")}, want: "d etc 755\nl l -> ../../etc\n"},
	{name: "opaque through a link out", items: []item{symlink("l", "../../etc"), file("l/.wh..wh..opq", "")}, want: "d etc 755\nl l -> ../../etc\n"},
	{name: "below a whiteout", items: []item{file(".wh.d/f", "")}, err: "below a whiteout"},
	{name: "what AUFS left", items: []item{dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", "")}},

	// duplicates, type changes, odd order
	{name: "last wins", items: []item{file("a", "1"), file("a", "22"), symlink("b", "x"), fifo("b"), dir("c"), file("c/x", ""), file("c", "3")},
		want: "f a 644 size=2\np b 600\nf c 644 size=1\n"},
	{name: "directory, file, directory", items: []item{file("d/a", ""), file("d", ""), dir("d"), file("d/b", "")}, lower: lower{ldir("d"), lfile("d/old")},
		want: "d d 750\nf d/b 644 size=0\nx d/old\n"},
	{name: "children before parents, parent later with another mode", items: []item{file("a/b/c", "x"), dir("a/b").mode(0o700).owner(3, 4), dir("a").mode(0), dir("a").mode(0o2711)},
		want: "d a 2711\nd a/b 700 3:4\nf a/b/c 644 size=1\n"},
	{name: "directory without rights", items: []item{dir("a").mode(0), dir("a/b").mode(0), file("a/b/c", "x").mode(0)}, want: "d a 0\nd a/b 0\nf a/b/c 0 size=1\n"},
	{name: "implicit directories take the lower attributes", items: []item{file("a/b/c", "")}, lower: lower{ldir("a")},
		want: "d a 711 7:0\nd a/b 755\nf a/b/c 644 size=0\n"},

	// lower links
	{name: "below a lower link", items: []item{file("lib/a/f", "1"), file("lib/.wh.old", ""), dir("lib/d").mode(0o700), file("lib/d/g", "2"), hard("lib/h", "lib/a/f"), file("usr/lib/z", "")},
		lower: lower{llink("lib", "usr/lib"), ldir("usr"), ldir("usr/lib"), ldir("usr/lib/a"), lfile("usr/lib/old")},
		want: "d usr 711 7:0\nd usr/lib 711 7:0\nd usr/lib/a 711 7:0\nf usr/lib/a/f 644 size=1\nd usr/lib/d 700\nf usr/lib/d/g 644 size=1\n" +
			"f usr/lib/h 644 size=1 = usr/lib/a/f\nx usr/lib/old\nf usr/lib/z 644 size=0\n"},
	{name: "below a lower link out", items: []item{file("l/passwd", "x")}, lower: lower{llink("l", "../../../etc")},
		want: "d etc 755\nf etc/passwd 644 size=1\n"},
	{name: "below a lower link and another", items: []item{file("a/b/f", "x")}, lower: lower{llink("a", "/c"), ldir("c"), llink("c/b", "../d"), ldir("d")},
		want: "d c 711 7:0\nd d 711 7:0\nf d/f 644 size=1\n"},
	{name: "below a lower link to above", items: []item{file("u/x/f", "1"), file("u/x/u/x/g", "2")}, lower: lower{ldir("u"), llink("u/x", "..")},
		want: "f f 644 size=1\nf g 644 size=1\nd u 711 7:0\n"},
	{name: "below a lower link, over what is there", items: []item{file("t/f", "old"), dir("t/d"), file("t/.wh.w", ""), file("l/f", "new"), file("l/d", "1"), file("l/w/y", "2")},
		lower: lower{llink("l", "t"), ldir("t"), ldir("t/w"), lfile("t/w/x")},
		want:  "d t 711 7:0\nf t/d 644 size=1\nf t/f 644 size=3\nd t/w 711 7:0\nx t/w/x\nf t/w/y 644 size=1\n"},
	{name: "opaque below a lower link", items: []item{file("l/d/.wh..wh..opq", "")}, lower: lower{llink("l", "t"), ldir("t"), ldir("t/d"), lfile("t/d/x")},
		want: "d t 711 7:0\nd t/d 711 7:0\nx t/d/x\n"},
	{name: "hard link below a lower link", items: []item{hard("l/h", "l/f")}, lower: lower{llink("l", "t"), ldir("t"), lfile("t/f")},
		want: "d t 711 7:0\nf t/f 4755 0:8 size=3\nf t/h 4755 0:8 size=3 = t/f\n"},
	{name: "own link to a lower link", items: []item{symlink("x", "lib"), file("x/f", "1")}, lower: lower{llink("lib", "usr/lib"), ldir("usr"), ldir("usr/lib")},
		want: "d usr 711 7:0\nd usr/lib 711 7:0\nf usr/lib/f 644 size=1\nl x -> lib\n"},
	{name: "directory over a lower link", items: []item{dir("lib"), file("lib/f", "1")}, lower: lower{llink("lib", "usr/lib"), ldir("usr"), ldir("usr/lib")},
		want: "d lib 750\nf lib/f 644 size=1\n"},
	{name: "lower link removed, implicit directory in its place", items: []item{file(".wh.lib", ""), file("lib/f", "1")}, lower: lower{llink("lib", "usr/lib"), ldir("usr"), ldir("usr/lib")},
		want: "d lib 755\nf lib/f 644 size=1\n"},
	{name: "below a lower loop", items: []item{file("a/f", "")}, lower: lower{llink("a", "b"), llink("b", "a")}, err: "too many levels"},
	{name: "below a lower link into itself", items: []item{file("a/f", "")}, lower: lower{llink("a", "a/b")}, err: "too many levels"},
	{name: "below a lower file", items: []item{file("a/f", "")}, lower: lower{lfile("a")}, err: "not a directory"},

	// D14: owners
	{name: "owners", items: []item{file("a", "").owner(65535, 65536), file("b", "").owner(1<<31, math.MaxUint32-1)},
		want: "f a 644 65535:65536 size=0\nf b 644 2147483648:4294967294 size=0\n"},
	{name: "uid that the kernel ignores", items: []item{file("a", "").owner(math.MaxUint32, 0)}, err: "uid 4294967295"},
	{name: "gid that wraps", items: []item{file("a", "").owner(0, 1<<32)}, err: "gid 4294967296"},
	{name: "negative uid", items: []item{file("a", "").owner(-1, 0)}, err: "uid -1"},

	// devices
	{name: "device", items: []item{char("d/null", 1, 3).mode(0o666).owner(1, 2)}, want: "d d 755\nc d/null 666 1:2 1,3\n"},
	{name: "overlay's whiteout as a device", items: []item{char("f", 0, 0)}, err: "0:0"},
	{name: "unknown type", items: []item{{Header: tar.Header{Typeflag: 'Z', Name: "z"}}}, err: "unknown type"},

	// D17: attributes
	{name: "attributes that count", items: []item{file("f", "").xattr("user.a", "\x00b=c"), file("g", "").xattr("security.capability", cap2), file("h", "").xattr("system.posix_acl_access", acl)},
		want: "f f 644 size=0 user.a=" + quote("\x00b=c") + "\nf g 644 size=0 security.capability=" + quote(cap2) + "\nf h 644 size=0 system.posix_acl_access=" + quote(acl) + "\n"},
	{name: "capability with a root id", items: []item{file("g", "").xattr("security.capability", cap3)}, want: "f g 644 size=0 security.capability=" + quote(cap2) + "\n"},
	{name: "capability cut", items: []item{file("g", "").xattr("security.capability", cap2[:19])}, err: "malformed file capability"},
	{name: "access control list cut", items: []item{file("g", "").xattr("system.posix_acl_access", acl[:9])}, err: "malformed access control list"},
	{name: "attributes of overlay, ours and the host's", items: []item{
		file("a", "").xattr("user.overlay.redirect", "/etc"), file("b", "").xattr("trusted.overlay.opaque", "y"), file("c", "").xattr("user.img.owner", "0:0"),
		file("d", "").xattr("security.selinux", "x"), dir("e").xattr("user.overlay.opaque", "y"), file("f", "").xattr("nodot", "x"), symlink("g", "x").xattr("user.a", "x")},
		lower: lower{ldir("e"), lfile("e/old")},
		want:  "f a 644 size=0\nf b 644 size=0\nf c 644 size=0\nf d 644 size=0\nd e 750\nf f 644 size=0\nl g -> x\n"},
	{name: "attribute of 64 KiB", items: []item{file("f", "").xattr("user.a", strings.Repeat("v", maxXattr))}, want: "f f 644 size=0 user.a=65536 bytes\n"},
	{name: "attribute of 64 KiB + 1", items: []item{file("f", "").xattr("user.a", strings.Repeat("v", maxXattr+1))}, err: "too long"},

	// D13: times
	{name: "times", items: []item{file("a", "").at(-86400, 0), file("b", "").at(1<<33, 500)},
		want: "f a 644 size=0 @-86400.000000000\nf b 644 size=0 @8589934592.000000500\n"},
}

func dirs(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("d " + strings.Repeat("d/", i) + "d 755\n")
	}
	return b.String()
}

// quote shows bytes; long ones by their number.
func quote(s string) string {
	if len(s) > 1000 {
		return fmt.Sprintf("%d bytes", len(s))
	}
	return fmt.Sprintf("%q", s)
}

func TestApply(t *testing.T) {
	for _, c := range applyCases {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			a, err := apply(t, h, archive(t, c.items...), c.lower, ApplyOptions{})
			h.check(t)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want one with %q", err, c.err)
				}
				return
			}
			must(t, err)
			if got := text(a.Entries); got != c.want {
				t.Errorf("got:\n%swant:\n%s", got, c.want)
			}
			if len(c.want) < 3000 || len(a.Entries) < 10 { // else too deep for paths from /
				checkDisk(t, h, a)
			}
		})
	}
}

// With one id, or as root of a user namespace with 65,536, the change sets are the same; only the disk shows less.
func TestApplyMapped(t *testing.T) {
	for _, ids := range []uint32{1, 65536} {
		for _, c := range applyCases {
			if c.err != "" {
				continue
			}
			h := newHost(t)
			a, err := apply(t, h, archive(t, c.items...), c.lower, ApplyOptions{IDs: ids})
			h.check(t)
			if err != nil {
				t.Errorf("%s with %d ids: %v", c.name, ids, err)
			} else if got := text(a.Entries); got != c.want {
				t.Errorf("%s with %d ids: got:\n%swant:\n%s", c.name, ids, got, c.want)
			}
		}
	}
}

// The owner outside the mapping is root on disk.
func TestApplyOwners(t *testing.T) {
	h := newHost(t)
	a, err := apply(t, h, archive(t, file("f", "").owner(65536, 5).mode(0o4755), dir("d").owner(3, 1<<31), symlink("l", "x").owner(70000, 6)), nil, ApplyOptions{IDs: 65536})
	must(t, err)
	if got, want := text(a.Entries), "d d 750 3:2147483648\nf f 4755 65536:5 size=0\nl l 70000:6 -> x\n"; got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	for _, c := range []struct {
		path     string
		uid, gid uint32
		attr     string
	}{{"f", 0, 5, "65536:5"}, {"d", 3, 0, "3:2147483648"}, {"l", 0, 6, ""}} {
		p := filepath.Join(h.root, c.path)
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		if st.Uid != c.uid || st.Gid != c.gid || attribute(p, attr.Owner) != c.attr {
			t.Errorf("%s: on disk %d:%d, %q", c.path, st.Uid, st.Gid, attribute(p, attr.Owner))
		}
	}
}

func attribute(p, name string) string {
	buf := make([]byte, 100)
	n, _ := unix.Lgetxattr(p, name, buf)
	return string(buf[:max(n, 0)])
}

func TestApplyDevice(t *testing.T) {
	h := newHost(t)
	_, err := apply(t, h, archive(t, char("null", 1, 3)), nil, ApplyOptions{})
	must(t, err)
	if got := attribute(filepath.Join(h.root, "null"), attr.Device); got != "c:1:3" {
		t.Errorf("attribute %q", got)
	}
}

func TestApplyMaxEntries(t *testing.T) {
	for _, c := range []struct {
		items []item
		err   string
	}{
		{[]item{file("a", ""), file("b", ""), file("c", "")}, ""},
		{[]item{file("a", ""), file("b", ""), file("c", ""), file("d", "")}, "more than 3 entries"},
		{[]item{file("a/b/c", "")}, ""},
		{[]item{file("a/b/c/d", "")}, "more than 3 entries"},
	} {
		_, err := apply(t, newHost(t), archive(t, c.items...), nil, ApplyOptions{MaxEntries: 3})
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: error %v, want %q", c.items[0].Name, err, c.err)
		}
	}
}

func TestApplyMaxXattrs(t *testing.T) {
	for _, n := range []int{maxXattrs, maxXattrs + 1} {
		i := file("f", "")
		i.PAXRecords = map[string]string{}
		for k := range n {
			i.PAXRecords[fmt.Sprintf("%suser.%d", paxXattr, k)] = ""
		}
		if _, err := apply(t, newHost(t), archive(t, i), nil, ApplyOptions{}); (err != nil) != (n > maxXattrs) {
			t.Errorf("%d attributes: %v", n, err)
		}
	}
}

// A header may announce any size: it is an error before anything is written, or when the archive ends.
func TestApplySizes(t *testing.T) {
	huge := item{Header: tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: math.MaxInt64 / 2, Format: tar.FormatPAX}}
	var b bytes.Buffer
	must(t, tar.NewWriter(&b).WriteHeader(&huge.Header))
	h := newHost(t)
	_, err := apply(t, h, b.Bytes(), nil, ApplyOptions{})
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("more than there is room for: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(h.root, "f")); err == nil {
		t.Error("the file was made before there was room for it")
	}
	whole := archive(t, file("f", strings.Repeat("x", 4000)))
	for _, n := range []int{1, 511, 513, 2000, 4512 - 1} {
		if _, err := apply(t, newHost(t), whole[:n], nil, ApplyOptions{}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

// A sparse file is small in the archive and long on disk.
func TestApplySparse(t *testing.T) {
	for _, c := range []struct {
		size int64
		err  string
	}{{1 << 20, ""}, {maxExpandFrom, ""}, {maxExpandFrom + 1<<20, "times as long"}} {
		h := newHost(t)
		a, err := apply(t, h, sparse(c.size), nil, ApplyOptions{})
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%d bytes: %v", c.size, err)
		}
		if err == nil && a.Entries[0].Size != c.size {
			t.Errorf("%d bytes: entry has %d", c.size, a.Entries[0].Size)
		}
	}
}

// sparse is an archive in GNU's sparse form 1.0 of a file that is one hole.
func sparse(size int64) []byte {
	sparseMap := make([]byte, 512)
	copy(sparseMap, fmt.Sprintf("1\n%d\n0\n", size))
	records := record("GNU.sparse.major=1") + record("GNU.sparse.minor=0") + record("GNU.sparse.name=f") + record(fmt.Sprintf("GNU.sparse.realsize=%d", size))
	return slices.Concat(block("x", 'x', records), block("f", '0', string(sparseMap)), make([]byte, 1024))
}

// record is a PAX record, which begins with its own length.
func record(kv string) string {
	n := len(kv) + 3
	for n != len(fmt.Sprintf("%d %s\n", n, kv)) {
		n++
	}
	return fmt.Sprintf("%d %s\n", n, kv)
}

// block is a header and its content, written by hand: tar.Writer makes no such archives.
func block(name string, flag byte, content string) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x0000000000000\x00", len(content)))
	copy(h[148:], "        ")
	h[156] = flag
	copy(h[257:], "ustar\x0000")
	total := 0
	for _, c := range h {
		total += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", total))
	data := make([]byte, (len(content)+511)/512*512)
	copy(data, content)
	return append(h, data...)
}

func TestApplyGlobalHeader(t *testing.T) {
	h := newHost(t)
	data := slices.Concat(block("g", 'g', record("path=../../../etc/passwd")), archive(t, file("f", "x")))
	a, err := apply(t, h, data, nil, ApplyOptions{})
	h.check(t)
	must(t, err)
	if got := text(a.Entries); got != "f f 644 size=1\n" {
		t.Errorf("got %s", got)
	}
}

func TestApplyReadsToTheEnd(t *testing.T) {
	r := bytes.NewReader(append(archive(t, file("f", "x")), make([]byte, 1<<20)...))
	_, err := Apply(context.Background(), r, newHost(t).open(t), ApplyOptions{})
	must(t, err)
	if r.Len() != 0 {
		t.Errorf("%d bytes left", r.Len())
	}
}

func TestApplyCanceled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("the build has ended")
	cancel(cause)
	if _, err := Apply(ctx, bytes.NewReader(archive(t, file("f", "x"))), newHost(t).open(t), ApplyOptions{}); !errors.Is(err, cause) {
		t.Errorf("error %v", err)
	}
}

// The lower file is not what its entry says: the copy must not become part of an image.
func TestSettleDamagedLower(t *testing.T) {
	low := lower{lfile("f")}
	low[0].Digest = sum("something else")
	if _, err := apply(t, newHost(t), archive(t, hard("h", "f")), low, ApplyOptions{}); !errors.Is(err, ErrChanged) {
		t.Errorf("error %v", err)
	}
}

// Without openat2 directories are opened a component at a time, with the same result.
func TestOpenDirByParts(t *testing.T) {
	h := newHost(t)
	root := int(h.open(t).Fd())
	must(t, os.MkdirAll(filepath.Join(h.root, "a/b"), 0o755))
	must(t, os.Symlink("a", filepath.Join(h.root, "l")))
	must(t, os.Symlink("/etc", filepath.Join(h.root, "a/m")))
	for p, want := range map[string]error{".": nil, "a": nil, "a/b": nil, "none": unix.ENOENT, "none/x": unix.ENOENT, "l": unix.ENOTDIR, "l/b": unix.ENOTDIR, "a/m": unix.ENOTDIR} {
		fd, err := openDirByParts(root, p, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
		if err != want {
			t.Errorf("%s: %v, want %v", p, err, want)
		}
		if fd2, err2 := openDir(root, p, unix.O_PATH); (err == nil) != (err2 == nil) {
			t.Errorf("%s: openat2 says %v", p, err2)
		} else if err2 == nil {
			unix.Close(fd2)
		}
		if err == nil {
			unix.Close(fd)
		}
	}
}

// FuzzApply: whatever the bytes, no panic, and nothing outside the directory changes.
func FuzzApply(f *testing.F) {
	for _, c := range applyCases {
		if len(c.items) < 10 && !strings.Contains(c.name, "of 4") && !strings.Contains(c.name, "64 KiB") {
			f.Add(archive(f, c.items...))
		}
	}
	f.Add(sparse(1 << 20))
	f.Add([]byte{})
	low := lower{ldir("a"), lfile("a/f"), llink("l", "../../etc"), llink("lib", "usr/lib"), llink("x", "x"), ldir("d"), ldir("d/s"), lfile("d/s/old"), lfile("f")}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 64<<10 {
			return
		}
		h := newHost(t)
		a, err := apply(t, h, data, low, ApplyOptions{IDs: 65536, MaxEntries: 200})
		h.check(t)
		if err != nil {
			return
		}
		for i := range a.Entries {
			if i > 0 && snapshot.Compare(a.Entries[i-1].Path, a.Entries[i].Path) >= 0 {
				t.Errorf("entries are not sorted: %q, %q", a.Entries[i-1].Path, a.Entries[i].Path)
			}
		}
	})
}

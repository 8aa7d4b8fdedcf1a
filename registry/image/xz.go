package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

var xzMagic = []byte{0xfd, '7', 'z', 'X', 'Z', 0}

// lzma2 is the filter whose only property is the size of its dictionary.
const lzma2 = 0x21

// An xzGuard passes an xz file on, and fails before the header of a block that wants a larger dictionary than limit bytes: decoders
// allocate what a header says, 4 GiB at most, and each block says it anew. To find the headers it follows the structure (xz-file-format.txt
// 1.2.0, sections 2 and 3; the chunks of LZMA2 as liblzma has them):
//
//	stream  fd "7zXZ" 00, flags (2), crc (4) | block ... | index | footer (12) | padding, next stream
//	block   size/4-1 (1, not 0), flags (1), sizes, filters, padding, crc | chunk ... 00 | padding to 4 | check
//	chunk   01 or 02, size-1 (2), data
//	        80 to ff, size unpacked (2), size-1 (2), properties (1, from c0 on), data
//	index   00, number of records, two numbers a record, padding to 4, crc (4)
type xzGuard struct {
	r     io.Reader
	limit int64

	// skip bytes are of no interest; then comes a field of need bytes, for next.
	skip  int64
	need  int
	field []byte
	next  func(field []byte) error

	check   int64 // bytes after each block
	length  int64 // of the block's chunks or of the index so far
	numbers uint64
}

var errXZ = errors.New("xz: damaged")

func newXZGuard(r io.Reader, limit int64) *xzGuard {
	g := &xzGuard{r: r, limit: limit}
	g.await(4, g.stream)
	return g
}

func (g *xzGuard) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	if ferr := g.follow(p[:n]); ferr != nil {
		return 0, ferr
	}
	return n, err
}

func (g *xzGuard) follow(b []byte) error {
	for len(b) > 0 {
		if n := min(int64(len(b)), g.skip); n > 0 {
			g.skip -= n
			b = b[n:]
			continue
		}
		n := min(len(b), g.need-len(g.field))
		g.field = append(g.field, b[:n]...)
		b = b[n:]
		if len(g.field) < g.need {
			return nil
		}
		field := g.field
		g.field = g.field[:0]
		if err := g.next(field); err != nil {
			return err
		}
	}
	return nil
}

func (g *xzGuard) await(need int, next func([]byte) error) { g.need, g.next = need, next }

// stream: four bytes of padding, or the beginning of a stream.
func (g *xzGuard) stream(f []byte) error {
	switch {
	case bytes.Equal(f, make([]byte, 4)):
		return nil
	case bytes.Equal(f, xzMagic[:4]):
		g.await(8, g.flags)
		return nil
	}
	return errXZ
}

// checkSizes are the sizes of the sixteen kinds of check, known and reserved, three a size.
var checkSizes = [16]int64{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}

func (g *xzGuard) flags(f []byte) error {
	g.check = checkSizes[f[3]&0xf]
	g.await(1, g.block)
	return nil
}

// block: the size of a block's header, or the mark of the index.
func (g *xzGuard) block(f []byte) error {
	if f[0] == 0 {
		g.length, g.numbers = 1, 0
		g.await(1, g.count(0))
		return nil
	}
	g.await((int(f[0])+1)*4-1, g.header)
	return nil
}

// header checks what the filters of a block ask for.
func (g *xzGuard) header(f []byte) error {
	number := func(b []byte) (uint64, []byte) {
		n, size := binary.Uvarint(b)
		if size <= 0 {
			return 0, nil
		}
		return n, b[size:]
	}
	rest := f[1:]
	for _, given := range []byte{0x40, 0x80} { // the block's sizes, compressed and not
		if f[0]&given != 0 {
			_, rest = number(rest)
		}
	}
	for range f[0]&3 + 1 {
		id, after := number(rest)
		size, props := number(after)
		if size > uint64(len(props)) || len(props) == 0 {
			return errXZ
		}
		if id == lzma2 {
			if size != 1 || props[0] > 40 {
				return errXZ
			}
			if n := dictionary(props[0]); n > g.limit {
				return fmt.Errorf("xz: needs a dictionary of %d MiB, more than %d", n>>20, g.limit>>20)
			}
		}
		rest = props[size:]
	}
	g.length = 0
	g.await(1, g.chunk)
	return nil
}

// dictionary decodes a size (xz-file-format.txt, 5.3.1): 4 KiB, 6 KiB, 8 KiB, 12 KiB … 4 GiB.
func dictionary(code byte) int64 { return int64(2|code&1) << (code/2 + 11) }

// chunk: a chunk's kind.
func (g *xzGuard) chunk(f []byte) error {
	g.length++
	switch c := f[0]; {
	case c == 0:
		g.skip = padding(g.length) + g.check
		g.await(1, g.block)
	case c <= 2:
		g.await(2, g.data)
	case c >= 0xc0:
		g.await(5, g.data)
	case c >= 0x80:
		g.await(4, g.data)
	default:
		return errXZ
	}
	return nil
}

// data: a chunk's sizes, the packed one last.
func (g *xzGuard) data(f []byte) error {
	at := 0
	if len(f) > 2 {
		at = 2
	}
	g.skip = int64(binary.BigEndian.Uint16(f[at:])) + 1
	g.length += int64(len(f)) + g.skip
	g.await(1, g.chunk)
	return nil
}

func padding(length int64) int64 { return -length & 3 }

// count reads the number of an index's records, seven bits a byte, the lowest first.
func (g *xzGuard) count(shift int) func([]byte) error {
	return func(f []byte) error {
		g.length++
		g.numbers |= uint64(f[0]&0x7f) << shift
		if f[0]&0x80 != 0 {
			if shift >= 56 {
				return errXZ
			}
			g.next = g.count(shift + 7)
			return nil
		}
		g.numbers *= 2
		g.next = g.record
		return g.indexEnd()
	}
}

// record passes over the bytes of the index's numbers.
func (g *xzGuard) record(f []byte) error {
	g.length++
	if f[0]&0x80 == 0 {
		g.numbers--
	}
	return g.indexEnd()
}

func (g *xzGuard) indexEnd() error {
	if g.numbers == 0 {
		g.skip = padding(g.length) + 4 + 12
		g.await(4, g.stream)
	}
	return nil
}

package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

const (
	maxWindow     = 128 << 20 // what the zstd command line accepts at most without --long, and twice what xz -9 needs
	maxRatio      = 1000      // expansion; honest layers stay below 200
	freeExpansion = 100 << 20 // bytes before the ratio counts
)

// Decompress undoes a layer's compression, told by its first bytes: gzip (all members), zstd, or none.
// The media type, which old tools get wrong, is only for the error. More than 1000-fold expansion is refused, but for runs of one
// byte: disk images, swap files and what databases lay out beforehand are honest and shrink 30,000-fold. What those may fill is
// the business of whoever writes them.
func Decompress(r io.Reader, mediaType string) (io.ReadCloser, error) {
	s, err := open(r)
	if err != nil {
		return nil, err
	}
	if s.form == xzForm || s.form == bzip2Form {
		return nil, fmt.Errorf("layer of media type %q is compressed by xz or bzip2, which images may not use", mediaType)
	}
	return s.plain()
}

// DecompressAny undoes the compression of an archive that is no layer: what Decompress knows, xz and bzip2, within the same bounds.
func DecompressAny(r io.Reader) (io.ReadCloser, error) {
	s, err := open(r)
	if err != nil {
		return nil, err
	}
	return s.plain()
}

// Forms of compression.
type form int

const (
	plainForm form = iota
	gzipForm
	zstdForm
	bzip2Form
	xzForm
)

func formOf(magic []byte) form {
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzipForm
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), isSkippable(magic):
		return zstdForm
	case bytes.HasPrefix(magic, []byte("BZh")):
		return bzip2Form
	case bytes.HasPrefix(magic, xzMagic):
		return xzForm
	}
	return plainForm
}

// A stream is an input whose form is known.
type stream struct {
	in   *counter
	r    *bufio.Reader
	form form
}

func open(r io.Reader) (*stream, error) {
	in := &counter{r: r}
	br := bufio.NewReaderSize(in, 1<<16)
	magic, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	return &stream{in, br, formOf(magic)}, nil
}

// plain returns the uncompressed content.
func (s *stream) plain() (io.ReadCloser, error) {
	switch s.form {
	case gzipForm:
		zr, err := gzip.NewReader(s.r)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		return &bounded{r: zr, in: s.in, close: zr.Close}, nil
	case zstdForm:
		// One decoder goroutine: layers are unpacked side by side already.
		zr, err := zstd.NewReader(s.r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return &bounded{r: zr, in: s.in, close: func() error { zr.Close(); return nil }}, nil
	case bzip2Form:
		return &bounded{r: bzip2.NewReader(s.r), in: s.in, close: func() error { return nil }}, nil
	case xzForm:
		zr, err := xz.NewReader(newXZGuard(s.r, maxWindow))
		if err != nil {
			return nil, err
		}
		return &bounded{r: zr, in: s.in, close: func() error { return nil }}, nil
	}
	return io.NopCloser(s.r), nil
}

// isSkippable tells a zstd skippable frame (RFC 8878, 3.1.2), which zstd:chunked and pzstd begin with.
func isSkippable(b []byte) bool {
	return len(b) >= 4 && b[0]&0xf0 == 0x50 && b[1] == 0x2a && b[2] == 0x4d && b[3] == 0x18
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// bounded refuses decompression bombs.
type bounded struct {
	r     io.Reader
	in    *counter
	n     int64 // bytes that came out, less the runs
	err   error // stays: some decoders tell an error once, and an end afterwards
	close func() error
}

func (b *bounded) Read(p []byte) (n int, err error) {
	if b.err != nil {
		return 0, b.err
	}
	defer func() { b.err = err }()
	n, err = b.r.Read(p)
	if !isRun(p[:n]) {
		b.n += int64(n)
	}
	if b.n > freeExpansion && b.n/maxRatio > b.in.n {
		return 0, fmt.Errorf("expands more than %d-fold: %d bytes from %d", maxRatio, b.n, b.in.n)
	}
	return n, err
}

// isRun reports whether all bytes are equal; it looks no further than the first that differs.
func isRun(p []byte) bool { return len(p) < 2 || bytes.Equal(p[1:], p[:len(p)-1]) }

func (b *bounded) Close() error { return b.close() }

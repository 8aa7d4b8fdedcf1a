package image

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/rand"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// bzip2Hello is "hello\n", by bzip2.
const bzip2Hello = "BZh91AY&SY\xc1\xc0\x80\xe2\x00\x00\x01A\x00\x00\x10\x02D\xa0\x000\xcd\x00\xc3F)\x97\x17rE8P\x90\xc1\xc0\x80\xe2"

func packed(t testing.TB, data []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := open(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func packXZ(t testing.TB, data []byte, c xz.WriterConfig) []byte {
	t.Helper()
	return packed(t, data, func(w io.Writer) (io.WriteCloser, error) { return c.NewWriter(w) })
}

func TestDecompressAny(t *testing.T) {
	noise := make([]byte, 3<<20)
	rand.New(rand.NewSource(1)).Read(noise[:1<<20]) // chunks that cannot be packed, and such that can
	manyBlocks := packXZ(t, noise, xz.WriterConfig{BlockSize: 100_001, CheckSum: xz.SHA256})
	for _, tc := range []struct {
		name string
		in   []byte
		want []byte
	}{
		{"nothing", nil, nil},
		{"plain", noise, noise},
		{"gzip", packed(t, noise, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }), noise},
		{"zstd", packed(t, noise, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }), noise},
		{"bzip2", []byte(bzip2Hello), []byte("hello\n")},
		{"xz", packXZ(t, noise, xz.WriterConfig{}), noise},
		{"xz of nothing", packXZ(t, nil, xz.WriterConfig{}), nil},
		{"xz with crc32", packXZ(t, noise, xz.WriterConfig{CheckSum: xz.CRC32}), noise},
		{"xz without check", packXZ(t, noise, xz.WriterConfig{NoCheckSum: true}), noise},
		{"xz of many blocks", manyBlocks, noise},
		{"xz of many streams", slicesJoin(manyBlocks, make([]byte, 8), packXZ(t, []byte("x"), xz.WriterConfig{}), make([]byte, 4)), append(noise[:len(noise):len(noise)], 'x')},
		{"xz with the largest dictionary", setDictionary(t, packXZ(t, noise, xz.WriterConfig{}), 30), noise}, // 128 MiB
	} {
		for how, r := range map[string]io.Reader{"at once": bytes.NewReader(tc.in), "in halves": iotest.HalfReader(bytes.NewReader(tc.in))} {
			plain, err := DecompressAny(r)
			if err != nil {
				t.Errorf("%s, %s: %v", tc.name, how, err)
				continue
			}
			got, err := io.ReadAll(plain)
			if err != nil || !bytes.Equal(got, tc.want) {
				t.Errorf("%s, %s: %d bytes, want %d: %v", tc.name, how, len(got), len(tc.want), err)
			}
			plain.Close()
		}
	}
}

// A block's header may ask for a dictionary of 4 GiB, which decoders then allocate; nor may an archive expand without bound.
func TestDecompressAnyBounds(t *testing.T) {
	small := packXZ(t, []byte("hello"), xz.WriterConfig{})
	bomb := bytes.Repeat(packXZ(t, bytes.Repeat([]byte("0123456789abcdef"), 8<<20/16), xz.WriterConfig{}), 14)
	for _, tc := range []struct {
		name string
		in   []byte
		want string
	}{
		{"dictionary of 4 GiB", setDictionary(t, small, 40), "needs a dictionary of 4096 MiB, more than 128"},
		{"dictionary of 192 MiB", setDictionary(t, small, 31), "needs a dictionary of 192 MiB, more than 128"},
		{"in the second stream", slicesJoin(small, setDictionary(t, small, 40)), "needs a dictionary"},
		{"no such dictionary", setDictionary(t, small, 41), "xz: damaged"},
		{"expansion of xz", bomb, "expands more than 1000-fold"},
		{"no stream after a stream", slicesJoin(small, []byte("tail")), "xz: damaged"},
		{"cut", small[:len(small)-14], "unexpected EOF"},
	} {
		plain, err := DecompressAny(bytes.NewReader(tc.in))
		if err == nil {
			_, err = io.Copy(io.Discard, plain)
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if plain == nil {
			continue
		}
		if _, again := plain.Read(make([]byte, 1)); again != err {
			t.Errorf("%s: then %v, want %v", tc.name, again, err) // who looks ahead, as a bufio.Reader does, may have dropped the first
		}
	}
}

// Layers may not be xz or bzip2: other tools cannot read them.
func TestDecompressIsStrict(t *testing.T) {
	for _, in := range [][]byte{[]byte(bzip2Hello), packXZ(t, nil, xz.WriterConfig{})} {
		if _, err := Decompress(bytes.NewReader(in), "a/b"); err == nil || !strings.Contains(err.Error(), "xz or bzip2") {
			t.Errorf("%.6q: %v", in, err)
		}
	}
}

func slicesJoin(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// setDictionary gives the first block of an xz file another dictionary size: the last byte of its only filter.
func setDictionary(t *testing.T, file []byte, code byte) []byte {
	t.Helper()
	out := bytes.Clone(file)
	header := out[12:][:(int(file[12])+1)*4]
	at := bytes.Index(header, []byte{lzma2, 1})
	if at < 0 {
		t.Fatal("no filter in the header")
	}
	header[at+2] = code
	end := len(header) - 4
	binary.LittleEndian.PutUint32(header[end:], crc32.ChecksumIEEE(header[:end]))
	return out
}

// The guard lets pass what a decoder reads, and never more dictionary than it says.
func FuzzXZGuard(f *testing.F) {
	f.Add(packXZ(f, []byte("hello"), xz.WriterConfig{}))
	f.Add(packXZ(f, bytes.Repeat([]byte("x"), 1000), xz.WriterConfig{BlockSize: 100}))
	f.Add(packXZ(f, nil, xz.WriterConfig{CheckSum: xz.SHA256}))
	f.Fuzz(func(t *testing.T, in []byte) {
		guarded, err := io.ReadAll(newXZGuard(bytes.NewReader(in), 1<<20))
		if err == nil && !bytes.Equal(guarded, in) {
			t.Fatal("not what was given")
		}
		r, rerr := xz.NewReader(newXZGuard(bytes.NewReader(in), 1<<20))
		if rerr != nil {
			return
		}
		if n, rerr := io.Copy(io.Discard, io.LimitReader(r, 1<<20)); n < 1<<20 && rerr == nil && err != nil {
			t.Fatalf("the guard refuses what is whole: %v", err)
		}
	})
}

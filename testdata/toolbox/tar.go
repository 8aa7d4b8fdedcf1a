package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// writeTar reads a listing from standard input and writes the tar of it to standard output. A line is
//
//	TYPE MODE UID:GID MTIME NAME [CONTENT or LINK]
//
// with TYPE one of f (file), d, l (symbolic link), h (hard link), p (fifo), c and b (devices, CONTENT is MAJOR:MINOR); CONTENT of a file is a
// Go string, or @FILE. A line
//
//	x NAME VALUE
//
// gives the next entry an extended attribute; VALUE is a Go string.
func writeTar([]string) error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	data, err := tarOf(string(text))
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(data)
	return err
}

var kinds = map[string]byte{"f": tar.TypeReg, "d": tar.TypeDir, "l": tar.TypeSymlink, "h": tar.TypeLink, "p": tar.TypeFifo,
	"c": tar.TypeChar, "b": tar.TypeBlock}

func tarOf(listing string) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	var attrs map[string]string // of the next entry
	lines := bufio.NewScanner(strings.NewReader(listing))
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		if attr, ok := strings.CutPrefix(lines.Text(), "x "); ok {
			name, quoted, _ := strings.Cut(attr, " ")
			value, err := strconv.Unquote(quoted)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", lines.Text(), err)
			}
			if attrs == nil {
				attrs = map[string]string{}
			}
			attrs["SCHILY.xattr."+name] = value
			continue
		}
		h, content, err := entry(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("%q: %w", lines.Text(), err)
		}
		h.PAXRecords, attrs = attrs, nil
		h.Size = int64(len(content))
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%q: %w", lines.Text(), err)
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}

func entry(line string) (*tar.Header, []byte, error) {
	f := strings.SplitN(strings.TrimSpace(line), " ", 6)
	if len(f) < 5 {
		return nil, nil, fmt.Errorf("not TYPE MODE UID:GID MTIME NAME")
	}
	h := &tar.Header{Typeflag: kinds[f[0]], Name: f[4]}
	mode, err := strconv.ParseInt(f[1], 8, 64)
	if err != nil {
		return nil, nil, err
	}
	h.Mode = mode
	if _, err := fmt.Sscanf(f[2], "%d:%d", &h.Uid, &h.Gid); err != nil {
		return nil, nil, err
	}
	seconds, err := strconv.ParseInt(f[3], 10, 64)
	if err != nil {
		return nil, nil, err
	}
	h.ModTime = time.Unix(seconds, 0)
	if len(f) < 6 {
		return h, nil, nil
	}
	switch {
	case h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock:
		_, err := fmt.Sscanf(f[5], "%d:%d", &h.Devmajor, &h.Devminor)
		return h, nil, err
	case h.Typeflag != tar.TypeReg:
		h.Linkname = f[5]
		return h, nil, nil
	case strings.HasPrefix(f[5], "@"):
		data, err := os.ReadFile(f[5][1:])
		return h, data, err
	}
	text, err := strconv.Unquote(f[5])
	return h, []byte(text), err
}

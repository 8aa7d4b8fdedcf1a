package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"img/registry/image"
	"img/registry/layout"
)

// stateImage finds an image of this platform in a state directory.
func stateImage(state, name string) (*layout.Store, *image.Image, error) {
	s, err := layout.OpenReadOnly(filepath.Join(state, "registry"))
	if err != nil {
		return nil, nil, err
	}
	d, _, err := findImage(context.Background(), s, name)
	if err != nil {
		return nil, nil, err
	}
	i, err := image.Load(context.Background(), s, d, image.HostPlatform())
	return s, i, err
}

// A treeFile is an entry of a layer.
type treeFile struct {
	h *tar.Header
	// content is a short text's as a Go string, "sha256:" and twelve digits of all other.
	content string
}

var typeLetters = map[byte]string{
	tar.TypeReg: "f", tar.TypeDir: "d", tar.TypeSymlink: "l", tar.TypeLink: "h", tar.TypeChar: "c", tar.TypeBlock: "b", tar.TypeFifo: "p",
}

// String is "TYPE MODE UID:GID SIZE PATH [-> LINK] [XATTR=HEX]..."; a device has its numbers as size.
func (f treeFile) String() string {
	h := f.h
	size := strconv.FormatInt(h.Size, 10)
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		size = fmt.Sprintf("%d,%d", h.Devmajor, h.Devminor)
	}
	line := fmt.Sprintf("%s %04o %d:%d %s %s", typeLetters[h.Typeflag], h.Mode&0o7777, h.Uid, h.Gid, size, path.Clean("/"+h.Name))
	if h.Linkname != "" {
		line += " -> " + h.Linkname
	}
	var attrs []string
	for k, v := range h.PAXRecords {
		if attr, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			attrs = append(attrs, fmt.Sprintf(" %s=%x", attr, v))
		}
	}
	slices.Sort(attrs)
	return line + strings.Join(attrs, "")
}

// full is String with the content.
func (f treeFile) full() string {
	if f.h.Typeflag != tar.TypeReg || f.h.Size == 0 {
		return f.String()
	}
	return f.String() + " " + f.content
}

// layerFiles calls f for each entry of a layer.
func layerFiles(s image.Fetcher, l image.Layer, f func(treeFile)) error {
	blob, err := s.Fetch(context.Background(), l.Descriptor)
	if err != nil {
		return err
	}
	defer blob.Close()
	plain, err := image.Decompress(blob, string(l.Descriptor.MediaType))
	if err != nil {
		return err
	}
	defer plain.Close()
	for t := tar.NewReader(plain); ; {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		content, err := shortContent(t)
		if err != nil {
			return err
		}
		f(treeFile{h, content})
	}
}

func shortContent(r io.Reader) (string, error) {
	const most = 100
	head := make([]byte, most)
	n, err := io.ReadFull(r, head)
	if head = head[:n]; (err == io.EOF || err == io.ErrUnexpectedEOF) && utf8.Valid(head) {
		return strconv.Quote(string(head)), nil
	}
	h := sha256.New()
	h.Write(head)
	_, err = io.Copy(h, r)
	return fmt.Sprintf("sha256:%.6x", h.Sum(nil)), err
}

// mergedFiles are the files of an image by path, "/" first.
func mergedFiles(s image.Fetcher, layers []image.Layer) (map[string]treeFile, error) {
	files := map[string]treeFile{}
	for _, l := range layers {
		if err := mergeLayer(files, s, l); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// mergeLayer applies a layer to a listing, by the letter of image-spec's layer.md.
func mergeLayer(files map[string]treeFile, s image.Fetcher, l image.Layer) error {
	here := map[string]bool{} // a whiteout hides lower layers alone
	return layerFiles(s, l, func(f treeFile) {
		name := path.Clean("/" + f.h.Name)
		dir, base := path.Split(name)
		hidden, white := strings.CutPrefix(base, ".wh.")
		switch {
		case base == ".wh..wh..opq":
			hide(files, here, path.Clean(dir), false)
		case white:
			hide(files, here, dir+hidden, true)
		default:
			if f.h.Typeflag != tar.TypeDir {
				hide(files, here, name, false)
			}
			files[name], here[name] = f, true
		}
	})
}

func hide(files map[string]treeFile, here map[string]bool, name string, itself bool) {
	for f := range files {
		if !here[f] && (itself && f == name || strings.HasPrefix(f, strings.TrimSuffix(name, "/")+"/")) {
			delete(files, f)
		}
	}
}

// configLines are an image's configuration, "NAME VALUE" with the value as JSON, sorted: the fields of "config", and those
// beside it that describe the image but for its times and layers.
func configLines(raw []byte) ([]string, error) {
	var all, config map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(all["config"], &config); err != nil {
		return nil, err
	}
	platform := image.HostPlatform()
	var out []string
	for k, v := range all {
		switch text := string(v); {
		case k == "config", k == "created", k == "history", k == "rootfs":
		case k == "os" && text == strconv.Quote(platform.OS), k == "architecture" && text == strconv.Quote(platform.Architecture):
		default:
			out = append(out, k+" "+text)
		}
	}
	for k, v := range config {
		out = append(out, k+" "+string(v))
	}
	slices.Sort(out)
	return out, nil
}

// stepLines are an image's history, "layer CREATED_BY" or "empty CREATED_BY", with the comment where it is not BuildKit's.
func stepLines(raw []byte) ([]string, error) {
	var all struct {
		History []struct {
			CreatedBy string `json:"created_by"`
			Comment   string `json:"comment"`
			Empty     bool   `json:"empty_layer"`
		} `json:"history"`
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	var out []string
	for _, h := range all.History {
		line := "layer "
		if h.Empty {
			line = "empty "
		}
		line += strings.ReplaceAll(h.CreatedBy, "\n", "\\n")
		if h.Comment != "buildkit.dockerfile.v0" {
			line += " (comment: " + h.Comment + ")"
		}
		out = append(out, line)
	}
	return out, nil
}

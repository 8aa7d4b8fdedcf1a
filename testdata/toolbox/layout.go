package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// layers N DIR: writes an OCI layout with one image of N uncompressed layers, tag "latest". Layer i writes /n/<i>,
// overwrites /last and deletes /n/<i-2>.
func layers(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var tars []string
	for i := range n {
		t := fmt.Sprintf("d 0755 0:0 1 n/\nf 0644 0:0 1 n/%d \"%d\"\nf 0644 0:0 1 last \"%d\"\n", i, i, i)
		if i >= 2 {
			t += fmt.Sprintf("f 0644 0:0 1 n/.wh.%d\n", i-2)
		}
		tars = append(tars, t)
	}
	return writeLayout(args[1], tars)
}

// odd DIR: writes an OCI layout with one image whose layers are legal and rare: no entries for parent directories,
// hard links into lower layers, a directory that becomes a file and a file that becomes a directory, an opaque
// directory, a whiteout of what is not there, a link that lower directories are reached through.
func odd(args []string) error {
	return writeLayout(args[0], []string{
		"d 0751 1:2 5 etc/\nf 0644 0:0 5 etc/motd \"hello\\n\"\nf 0640 3:4 5 srv/data/file \"data\"\n" +
			"d 0755 0:0 5 dir/\nf 0644 0:0 5 dir/in \"in\"\nf 0644 0:0 5 file \"file\"\n" +
			"d 0755 0:0 5 opaque/\nf 0644 0:0 5 opaque/old \"old\"\nd 0755 0:0 5 usr/lib/\nl 0777 0:0 5 lib usr/lib\nf 4755 0:0 5 suid \"s\"\n",
		"h 0644 0:0 6 a/b/linked srv/data/file\nf 0644 0:0 6 deep/er/est \"x\"\nf 0644 0:0 6 lib/so \"so\"\n",
		"f 0600 0:0 7 dir \"was a directory\"\nd 0700 0:0 7 file/\nf 0644 0:0 7 file/in \"was a file\"\n" +
			"f 0644 0:0 7 opaque/.wh..wh..opq\nf 0644 0:0 7 opaque/new \"new\"\nf 0644 0:0 7 etc/.wh.nothing\n",
	})
}

func writeLayout(dir string, listings []string) error {
	w := layoutWriter(dir)
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return err
	}
	var blobs []descriptor
	var diffIDs []string
	for _, l := range listings {
		data, err := tarOf(l)
		if err != nil {
			return err
		}
		d, err := w.blob("application/vnd.oci.image.layer.v1.tar", data)
		if err != nil {
			return err
		}
		blobs, diffIDs = append(blobs, d), append(diffIDs, d.Digest)
	}
	config, err := w.json("application/vnd.oci.image.config.v1+json", map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		return err
	}
	manifest, err := w.json("application/vnd.oci.image.manifest.v1+json", map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": blobs,
	})
	if err != nil {
		return err
	}
	manifest.Annotations = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}

type layoutWriter string

func (w layoutWriter) blob(mediaType string, data []byte) (descriptor, error) {
	d := descriptor{MediaType: mediaType, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(data)), Size: int64(len(data))}
	name := filepath.Join(string(w), "blobs", strings.Replace(d.Digest, ":", "/", 1))
	return d, os.WriteFile(name, data, 0o644)
}

func (w layoutWriter) json(mediaType string, v any) (descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	return w.blob(mediaType, data)
}

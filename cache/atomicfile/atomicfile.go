// Package atomicfile publishes files and directories by rename, so that a reader sees the old content or the new.
//
// Files that root writes into another user's state directory get that directory's owner, so that root and the user
// can share one state. It knows nothing about what the files hold.
package atomicfile

import "os"

// Options of Write.
type Options struct {
	// Sync makes the content and the name durable before Write returns.
	Sync bool
	// Mode is the file's mode; 0 means 0644.
	Mode os.FileMode
}

// Write replaces path by data: a temporary file in the same directory, fsync if asked, owner as the directory's, rename.
func Write(path string, data []byte, o Options) error { panic("unwritten") }

// MkdirAll makes dir and missing parents, mode 0755, each with the owner of its parent.
func MkdirAll(dir string) error { panic("unwritten") }

// Inherit gives path the owner of its directory when the caller is root and they differ; otherwise it does nothing.
func Inherit(path string) error { panic("unwritten") }

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error { panic("unwritten") }

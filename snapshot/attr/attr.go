// Package attr names the extended attributes of ours that say of files on disk what the disk cannot: owners that are not mapped, and
// devices, which nobody may make. It does not set or read them.
package attr

import (
	"fmt"
	"strconv"
	"strings"
)

const (
	// Prefix begins the attributes that are never an image's.
	Prefix = "user.img."
	// Owner on a regular file or directory is "uid:gid", in decimal, honoured where the disk has 0:0.
	Owner = Prefix + "owner"
	// Device on an empty regular file makes it stand for a device: "c:major:minor" or "b:major:minor", in decimal.
	Device = Prefix + "device"
)

// FormatOwner is the value of Owner.
func FormatOwner(uid, gid uint32) []byte { return fmt.Appendf(nil, "%d:%d", uid, gid) }

// ParseOwner reads the value of Owner; false if it is none.
func ParseOwner(value []byte) (uid, gid uint32, ok bool) {
	u, g, found := strings.Cut(string(value), ":")
	un, err1 := strconv.ParseUint(u, 10, 32)
	gn, err2 := strconv.ParseUint(g, 10, 32)
	if !found || err1 != nil || err2 != nil {
		return 0, 0, false
	}
	return uint32(un), uint32(gn), true
}

// FormatDevice is the value of Device; kind is 'c' or 'b'.
func FormatDevice(kind byte, major, minor uint32) []byte {
	return fmt.Appendf(nil, "%c:%d:%d", kind, major, minor)
}

// ParseDevice reads the value of Device; false if it is none.
func ParseDevice(value []byte) (kind byte, major, minor uint32, ok bool) {
	if len(value) < 2 || value[0] != 'c' && value[0] != 'b' || value[1] != ':' {
		return 0, 0, 0, false
	}
	major, minor, ok = ParseOwner(value[2:])
	return value[0], major, minor, ok
}

package layer

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"img/snapshot"
	"img/snapshot/attr"
)

// paxXattr is the prefix of the PAX records that hold extended attributes.
const paxXattr = "SCHILY.xattr."

// A PAX key ends at the first '='; star and GNU tar write such names like this.
var (
	encodeName = strings.NewReplacer("%", "%25", "=", "%3D")
	decodeName = strings.NewReplacer("%25", "%", "%3D", "=")
)

const (
	capability = "security.capability"
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// xattrs takes from PAX records the attributes that count (snapshot.Entry.Xattrs), sorted. Attributes of overlay and of
// this store are the layer's word on how it is stored, and dropped, like all that the kernel would not show in a
// container.
func xattrs(records map[string]string, t snapshot.Type) ([]snapshot.Xattr, error) {
	var out []snapshot.Xattr
	for k, v := range records {
		name, ok := strings.CutPrefix(k, paxXattr)
		if !ok {
			continue
		}
		name = decodeName.Replace(name)
		if !counts(name, t) {
			continue
		}
		if len(name) > 255 || len(v) > maxXattr {
			return nil, fmt.Errorf("attribute %.64q is too long", name)
		}
		value, err := canonical(name, []byte(v))
		if err != nil {
			return nil, fmt.Errorf("attribute %q: %w", name, err)
		}
		out = append(out, snapshot.Xattr{Name: name, Value: value})
	}
	if len(out) > maxXattrs {
		return nil, fmt.Errorf("more than %d extended attributes", maxXattrs)
	}
	slices.SortFunc(out, func(a, b snapshot.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Xattrs returns the attributes of a tar's entry that a layer keeps, sorted. More of them than are allowed, and malformed ones, are errors.
func Xattrs(h *tar.Header) ([]snapshot.Xattr, error) {
	var e snapshot.Entry
	if err := typeOf(h, &e); err != nil {
		return nil, err
	}
	return xattrs(h.PAXRecords, e.Type)
}

// counts reports whether an attribute can be on such a file, and is the image's. The kernel has user.* for files and
// directories only (xattr(7)).
func counts(name string, t snapshot.Type) bool {
	switch {
	case strings.HasPrefix(name, "user.overlay."), strings.HasPrefix(name, attr.Prefix):
		return false
	case strings.HasPrefix(name, "user."):
		return len(name) > len("user.") && (t == snapshot.File || t == snapshot.Dir)
	case name == capability:
		return t == snapshot.File
	case name == aclAccess:
		return t != snapshot.Symlink
	case name == aclDefault:
		return t == snapshot.Dir
	}
	return false
}

// canonical checks the values whose form the kernel checks, and takes the root id out of capabilities.
func canonical(name string, v []byte) ([]byte, error) {
	switch name {
	case capability:
		return canonicalCapability(v)
	case aclAccess, aclDefault:
		// Version 2, then entries of 8 bytes (linux/posix_acl_xattr.h).
		if len(v) < 4 || len(v)%8 != 4 || binary.LittleEndian.Uint32(v) != 2 {
			return nil, fmt.Errorf("malformed access control list")
		}
	}
	return v, nil
}

// canonicalCapability makes version 2 of version 3 (linux/capability.h): the kernel adds the root id of the user
// namespace that sets it.
func canonicalCapability(v []byte) ([]byte, error) {
	const v2, v3, effective = 0x02000000, 0x03000000, 1
	if len(v) >= 4 {
		magic := binary.LittleEndian.Uint32(v)
		switch {
		case magic&^effective == v2 && len(v) == 20:
			return v, nil
		case magic&^effective == v3 && len(v) == 24:
			v = bytes.Clone(v[:20])
			binary.LittleEndian.PutUint32(v, v2|magic&effective)
			return v, nil
		}
	}
	return nil, fmt.Errorf("malformed file capability of %d bytes", len(v))
}

// setXattrs puts an entry's attributes on disk. What the file system or the mapping cannot hold is no error: the entry
// has it, and the entry is what is exported.
func setXattrs(fd int, attrs []snapshot.Xattr) error {
	for _, x := range attrs {
		if err := unix.Fsetxattr(fd, x.Name, x.Value, 0); err != nil && !tolerable(x.Name, err) {
			return fmt.Errorf("set attribute %q: %w", x.Name, err)
		}
	}
	return nil
}

// tolerable reports whether a file may stay without an attribute. EINVAL: an access control list names an id outside the
// mapping. EPERM: capabilities need a mapping of the file's owner. The rest: file systems without attributes, or with
// less room for them than the kernel's 64 KiB (ext4: a block for all).
func tolerable(name string, err error) bool {
	switch err {
	case unix.ENOTSUP, unix.E2BIG, unix.ENOSPC, unix.ERANGE:
		return true
	case unix.EPERM, unix.EINVAL:
		return !strings.HasPrefix(name, "user.")
	}
	return false
}

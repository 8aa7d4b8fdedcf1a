package sandbox

import "golang.org/x/sys/unix"

// decode tells what a notified system call asks for, by the calling convention of amd64.
func decode(nr int32, args [6]uint64) (request, bool) {
	switch nr {
	case unix.SYS_CHOWN:
		return request{dir: unix.AT_FDCWD, path: args[0], uid: id(args[1]), gid: id(args[2])}, true
	case unix.SYS_LCHOWN:
		return request{dir: unix.AT_FDCWD, path: args[0], uid: id(args[1]), gid: id(args[2]), flags: unix.AT_SYMLINK_NOFOLLOW}, true
	case unix.SYS_MKNOD:
		return request{kind: askMknod, dir: unix.AT_FDCWD, path: args[0], mode: uint32(args[1]), dev: uint32(args[2])}, true
	}
	return decodeCommon(nr, args)
}

//go:build !amd64

package sandbox

// decode tells what a notified system call asks for. Architectures with the kernel's generic table (arm64 …) have the common calls alone.
func decode(nr int32, args [6]uint64) (request, bool) { return decodeCommon(nr, args) }

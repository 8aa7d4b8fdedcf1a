package userns

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// sealed are the seals by which libcontainer knows a binary that no container can overwrite; it copies any other anew for
// each of its children.
const sealed = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// program is this program's binary, to be started again: from a sealed memfd, made once; where that is forbidden
// (vm.memfd_noexec=2), the binary itself.
var program = sync.OnceValues(func() (*os.File, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("open this program: %w", err)
	}
	if seals, err := unix.FcntlInt(self.Fd(), unix.F_GET_SEALS, 0); err == nil && seals&sealed == sealed {
		return self, nil
	}
	copied, err := sealedCopy(self)
	if err != nil {
		return self, nil
	}
	self.Close()
	return copied, nil
})

func sealedCopy(self *os.File) (_ *os.File, err error) {
	const name, flags = "img", unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3 every memfd could be executed
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if _, err := io.Copy(f, self); err != nil {
		return nil, err
	}
	// Readable by all: a process whose binary it cannot read is not dumpable, and newuidmap refuses to map it.
	if err := f.Chmod(0o555); err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, sealed); err != nil {
		return nil, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	return f, nil
}

// programAbove is the program at a descriptor that stays what it is in the child until it is executed. The child puts its own files
// at 0, 1, 2 ..., and before that, os.StartProcess moves what stands in the way (some of the files, and a pipe of its own) to
// just above the highest of them. There the program would be overwritten, and starting a pipe is "permission denied".
func programAbove(files []*os.File) (*os.File, error) {
	f, err := program()
	if err != nil {
		return nil, err
	}
	above := len(files)
	for _, file := range files {
		above = max(above, int(file.Fd()))
	}
	above += len(files) + 2 // each may be moved, and the pipe
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, above)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

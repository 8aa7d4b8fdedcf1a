package sandbox

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"img/snapshot/attr"
)

const (
	aptConfText = "APT::Sandbox::User \"root\";\n"

	// notifyAPI is libseccomp's number for user notification (library 2.5, Linux 5.7 …).
	notifyAPI = 6

	maxPath = unix.PathMax
)

// A supervisor answers the ownership calls of one OneID process and its children.
//
// It works on a thread of its own that takes on the caller's root and working directory for each call, so that the kernel
// resolves the path as it would have for the caller: links, "..", chroots. What a hostile step can reach this way, its own root user
// can reach without.
type supervisor struct {
	dir      string // private, holds the socket and apt's file
	root     string // the step's, as this process sees it
	listener *net.UnixListener
	dirFD    *os.File // the socket is named through it: paths of sockets are short
	recorded *Owners
	stop     *os.File // closed to end the thread
	done     chan struct{}
}

// newSupervisor makes the files of a OneID process and, where the kernel can notify, starts to listen.
func newSupervisor(s Spec, f *Facts) (_ *supervisor, err error) {
	if err := os.MkdirAll(s.StateDir, 0o700); err != nil {
		return nil, err
	}
	v := &supervisor{dir: filepath.Join(s.StateDir, s.ID+".one"), root: s.Root, recorded: newOwners()}
	if err := os.Mkdir(v.dir, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(v.dir)
		}
	}()
	f.AptConf = filepath.Join(v.dir, "apt.conf")
	if err := os.WriteFile(f.AptConf, []byte(aptConfText), 0o644); err != nil {
		return nil, err
	}
	if !canNotify() {
		return v, nil
	}
	f.Listener, err = v.listen()
	return v, err
}

// canNotify tells whether ownership can be recorded: notifications, the answer "continue", and an end of file for the listener
// are all there since Linux 5.9.
func canNotify() bool {
	api, err := libseccomp.GetAPI()
	if err != nil || api < notifyAPI {
		return false
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 5 || major == 5 && minor >= 9
}

// listen opens the socket over which libcontainer will hand the seccomp listener, and starts the thread that waits for it.
func (v *supervisor) listen() (string, error) {
	var err error
	if v.dirFD, err = os.Open(v.dir); err != nil {
		return "", err
	}
	name := fmt.Sprintf("/proc/self/fd/%d/notify", v.dirFD.Fd())
	if v.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"}); err != nil {
		v.dirFD.Close()
		return "", err
	}
	r, w, err := os.Pipe()
	if err != nil {
		v.listener.Close()
		v.dirFD.Close()
		return "", err
	}
	v.stop, v.done = w, make(chan struct{})
	go func() {
		defer close(v.done)
		defer r.Close()
		if fd, err := v.accept(); err == nil {
			defer unix.Close(fd)
			v.serve(fd, int(r.Fd()))
		}
	}()
	return name, nil
}

// accept receives the seccomp listener: one message with one descriptor. libcontainer's description of the container is not needed.
func (v *supervisor) accept() (int, error) {
	conn, err := v.listener.AcceptUnix()
	if err != nil {
		return -1, err
	}
	defer conn.Close()
	text, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(text, oob)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return -1, errors.New("no descriptor in libcontainer's message")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.New("not one descriptor in libcontainer's message")
	}
	unix.CloseOnExec(fds[0])
	return fds[0], nil
}

// close ends the thread and removes the files.
func (v *supervisor) close() {
	if v.done != nil {
		v.listener.Close()
		v.stop.Close()
		<-v.done
		v.dirFD.Close()
	}
	v.recorded.settle(v.root)
	os.RemoveAll(v.dir)
}

// owners is what was recorded, once the supervisor is closed.
func (v *supervisor) owners() *Owners {
	if v == nil {
		return nil
	}
	return v.recorded
}

// The kernel's struct seccomp_notif and seccomp_notif_resp (include/uapi/linux/seccomp.h).
type (
	notification struct {
		ID    uint64
		PID   uint32
		Flags uint32
		NR    int32
		Arch  uint32
		IP    uint64
		Args  [6]uint64
	}
	response struct {
		ID    uint64
		Val   int64
		Error int32
		Flags uint32
	}
)

// serve answers notifications until all processes under the filter are gone, or stop ends.
func (v *supervisor) serve(listener, stop int) {
	onOwnThread(func() {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return
		}
		unix.Umask(0)
		proc, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		defer unix.Close(proc)
		t := thread{listener: listener, proc: proc, owners: v.recorded}
		for waitReadable(listener, stop) {
			t.next()
		}
	})
}

// waitReadable waits for a notification; false means the end.
func waitReadable(listener, stop int) bool {
	fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		if err == unix.EINTR {
			continue
		}
		return err == nil && fds[1].Revents == 0 && fds[0].Revents&unix.POLLIN != 0
	}
}

// A thread is the supervisor's own thread, with what it needs to answer. Only plain system calls may be made on it: its root is
// the caller's.
type thread struct {
	listener int
	proc     int // the inner process's /proc
	owners   *Owners
}

// next takes one notification and answers it. The caller may die at any moment; then there is nobody to answer.
func (t thread) next() {
	var n notification
	if ioctl(t.listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)) != nil {
		return
	}
	resp := response{ID: n.ID}
	switch err := t.answer(&n); {
	case errors.Is(err, errContinue):
		resp.Flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
	case err != nil:
		errno, ok := err.(unix.Errno)
		if !ok {
			errno = unix.EPERM
		}
		resp.Error = -int32(errno)
	}
	_ = ioctl(t.listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&resp))
}

func ioctl(fd int, req uint, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(arg))
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}

// errContinue lets the kernel carry out the call as it stands. It gives nothing away: the caller has only its own rights.
var errContinue = errors.New("continue")

const (
	askChown = iota
	askMknod
)

// A request is an ownership call: what chown(2), fchown(2), lchown(2), fchownat(2), mknod(2) and mknodat(2) have in common.
type request struct {
	kind     int
	dir      int    // a descriptor of the caller, or AT_FDCWD
	path     uint64 // address in the caller's memory; 0 means the descriptor itself
	uid, gid int64  // -1 keeps what is there
	flags    int    // AT_…
	mode     uint32
	dev      uint32
}

// id reads an argument of type uid_t; the highest value, which stands for "unchanged", becomes -1.
func id(arg uint64) int64 {
	if v := uint32(arg); v != ^uint32(0) {
		return int64(v)
	}
	return -1
}

// decodeCommon knows the calls that every architecture has.
func decodeCommon(nr int32, args [6]uint64) (request, bool) {
	dir := int(int32(uint32(args[0])))
	switch nr {
	case unix.SYS_FCHOWN:
		return request{dir: dir, uid: id(args[1]), gid: id(args[2]), flags: unix.AT_EMPTY_PATH}, true
	case unix.SYS_FCHOWNAT:
		return request{dir: dir, path: args[1], uid: id(args[2]), gid: id(args[3]), flags: int(int32(uint32(args[4])))}, true
	case unix.SYS_MKNODAT:
		return request{kind: askMknod, dir: dir, path: args[1], mode: uint32(args[2]), dev: uint32(args[3])}, true
	}
	return request{}, false
}

func (t thread) answer(n *notification) error {
	req, ok := decode(n.NR, n.Args)
	if !ok {
		return errContinue
	}
	name := ""
	if req.path != 0 {
		var err error
		if name, err = readString(int(n.PID), req.path); err != nil {
			return err
		}
	}
	if req.kind == askMknod {
		return t.mknod(n, req, name)
	}
	return t.chown(n, req, name)
}

// readString reads a path from a process. It goes page by page: the one after the end may not be mapped.
func readString(pid int, addr uint64) (string, error) {
	var text []byte
	for len(text) < maxPath {
		size := pageSize - addr%pageSize
		buf := make([]byte, size)
		n, err := unix.ProcessVMReadv(pid,
			[]unix.Iovec{{Base: &buf[0], Len: size}}, []unix.RemoteIovec{{Base: uintptr(addr), Len: int(size)}}, 0)
		if err != nil || n <= 0 {
			return "", unix.EFAULT
		}
		if end := strings.IndexByte(string(buf[:n]), 0); end >= 0 {
			text = append(text, buf[:end]...)
			if len(text) >= maxPath {
				break
			}
			return string(text), nil
		}
		text = append(text, buf[:n]...)
		addr += uint64(n)
	}
	return "", unix.ENAMETOOLONG
}

var pageSize = uint64(os.Getpagesize())

// enter takes on the caller's root and the directory from which the path starts. The caller is still there afterwards, or an
// error: its number may have been given to another process before, not later.
func (t thread) enter(n *notification, dir int) error {
	pid := strconv.Itoa(int(n.PID))
	root, err := unix.Openat(t.proc, pid+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	start, err := unix.Openat(t.proc, t.startOf(pid, dir), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return unix.EBADF
	}
	defer unix.Close(start)
	if err := t.alive(n); err != nil {
		return err
	}
	if err := unix.Fchdir(root); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Fchdir(start)
}

func (t thread) startOf(pid string, dir int) string {
	if dir == unix.AT_FDCWD {
		return pid + "/cwd"
	}
	return pid + "/fd/" + strconv.Itoa(dir)
}

// alive tells whether the caller still waits for this answer.
func (t thread) alive(n *notification) error {
	id := n.ID
	return ioctl(t.listener, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&id))
}

// open returns the file a call means, as an O_PATH descriptor.
func (t thread) open(n *notification, req request, name string) (int, error) {
	if name == "" {
		if req.flags&unix.AT_EMPTY_PATH == 0 {
			return -1, unix.ENOENT
		}
		if err := t.enter(n, unix.AT_FDCWD); err != nil {
			return -1, err
		}
		fd, err := unix.Openat(t.proc, t.startOf(strconv.Itoa(int(n.PID)), req.dir), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, unix.EBADF
		}
		if err := t.alive(n); err != nil {
			unix.Close(fd)
			return -1, err
		}
		return fd, nil
	}
	dir := req.dir
	if path.IsAbs(name) {
		dir = unix.AT_FDCWD // the descriptor is not looked at
	}
	if err := t.enter(n, dir); err != nil {
		return -1, err
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS}
	if req.flags&unix.AT_SYMLINK_NOFOLLOW != 0 {
		how.Flags |= unix.O_NOFOLLOW
	}
	return unix.Openat2(unix.AT_FDCWD, name, &how)
}

// chown gives a file the owner that one id allows, and notes the one that was asked for.
func (t thread) chown(n *notification, req request, name string) error {
	fd, err := t.open(n, req, name)
	if err != nil {
		return t.unresolved(err, name)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	// The kernel's own chown: it checks what has to be checked, copies the file up, clears set-id bits, and moves ctime.
	if err := unix.Fchownat(fd, "", keep(req.uid), keep(req.gid), unix.AT_EMPTY_PATH); err == unix.EROFS || err != nil && !t.foreign(fd) {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
		return t.markOwner(fd, &st, req)
	}
	t.recordOwner(fd, &st, req)
	return nil
}

// keep is -1 where the caller said so, else the one id there is.
func keep(id int64) int {
	if id == -1 {
		return -1
	}
	return 0
}

// foreign tells whether the file is no file of the root: a pipe, a socket, a bound device. Who owns those is nobody's business.
func (t thread) foreign(fd int) bool {
	root, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(root)
	a, err1 := mountID(fd)
	b, err2 := mountID(root)
	return err1 != nil || err2 != nil || a != b
}

func mountID(fd int) (uint64, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st)
	return st.Mnt_id, err
}

// unresolved leaves the error to the kernel, which says it better, but for the links of /proc that mean the caller's own
// descriptors: they are not the supervisor's, and nobody can own them.
func (t thread) unresolved(err error, name string) error {
	switch err {
	case unix.EBADF:
		return err
	case unix.ENOENT, unix.ELOOP:
		if strings.HasPrefix(name, "/dev/std") || strings.HasPrefix(name, "/dev/fd/") || strings.HasPrefix(name, "/proc/self/fd/") {
			return nil
		}
	}
	return errContinue
}

// markOwner writes the attribute. File systems without user attributes keep none; the record does.
func (t thread) markOwner(fd int, st *unix.Stat_t, req request) error {
	self, err := t.nameOf(fd)
	if err != nil {
		return err
	}
	want := merge(t.markedOwner(self, st), req)
	if want == (ids{}) {
		err = unix.Removexattr(self, attr.Owner)
	} else {
		err = unix.Setxattr(self, attr.Owner, attr.FormatOwner(want.uid, want.gid), 0)
	}
	switch err {
	case nil, unix.ENODATA:
		return nil
	case unix.EOPNOTSUPP:
		t.recordOwner(fd, st, req)
		return nil
	}
	return err
}

// nameOf makes the descriptor reachable for calls that take paths alone: relative to /proc, which becomes the working directory.
func (t thread) nameOf(fd int) (string, error) {
	if err := unix.Fchdir(t.proc); err != nil {
		return "", err
	}
	return "self/fd/" + strconv.Itoa(fd), nil
}

func (t thread) markedOwner(self string, st *unix.Stat_t) ids {
	buf := make([]byte, 64)
	if n, err := unix.Getxattr(self, attr.Owner, buf); err == nil {
		if uid, gid, ok := attr.ParseOwner(buf[:n]); ok {
			return ids{uid, gid}
		}
	}
	return diskOwner(st)
}

// diskOwner is the owner as the file system has it; ids that are not mapped count as root.
func diskOwner(st *unix.Stat_t) ids {
	v := ids{st.Uid, st.Gid}
	if v.uid == overflowID {
		v.uid = 0
	}
	if v.gid == overflowID {
		v.gid = 0
	}
	return v
}

// overflowID is what the kernel shows for an id that is not mapped.
const overflowID = 65534

func merge(old ids, req request) ids {
	if req.uid != -1 {
		old.uid = uint32(req.uid)
	}
	if req.gid != -1 {
		old.gid = uint32(req.gid)
	}
	return old
}

// recordOwner remembers the owner by inode, for files of the root itself: another file system has other numbers.
func (t thread) recordOwner(fd int, st *unix.Stat_t, req request) {
	if t.foreign(fd) {
		return
	}
	old := diskOwner(st)
	if asked, ok := t.owners.of(st.Ino); ok {
		old = asked
	}
	// The number may have changed with a copy-up.
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil {
		return
	}
	t.owners.setOwner(fd, now.Ino, merge(old, req))
}

// mknod makes a file that stands for the device. Fifos, sockets and regular files are for the kernel. A character device 0:0
// would be a whiteout to overlay.
func (t thread) mknod(n *notification, req request, name string) error {
	d := device{major: unix.Major(uint64(req.dev)), minor: unix.Minor(uint64(req.dev))}
	switch req.mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.kind = 'c'
	case unix.S_IFBLK:
		d.kind = 'b'
	default:
		return errContinue
	}
	if d == (device{kind: 'c'}) {
		return unix.EPERM
	}
	dir := req.dir
	if path.IsAbs(name) {
		dir = unix.AT_FDCWD
	}
	umask, err := strconv.ParseUint(statusOf(t.proc, int(n.PID), "Umask:"), 8, 32)
	if err != nil {
		umask = 0o022
	}
	if err := t.enter(n, dir); err != nil {
		return err
	}
	return t.placeholder(name, req.mode&0o7777&^uint32(umask), d)
}

func (t thread) placeholder(name string, mode uint32, d device) error {
	how := unix.OpenHow{
		Flags:   unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_WRONLY | unix.O_CLOEXEC,
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, name, &how)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	err = unix.Fsetxattr(fd, attr.Device, attr.FormatDevice(d.kind, d.major, d.minor), 0)
	if err != nil && err != unix.EOPNOTSUPP {
		_ = unix.Unlink(name) // our own, made exclusively a moment ago
		return unix.EPERM
	}
	if !t.foreign(fd) {
		t.owners.setDevice(fd, st.Ino, d)
	}
	return nil
}

// statusOf is statusLine by plain calls relative to a descriptor of /proc.
func statusOf(proc, pid int, name string) string {
	fd, err := unix.Openat(proc, strconv.Itoa(pid)+"/status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	buf := make([]byte, 8<<10)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return ""
	}
	return valueOf(string(buf[:n]), name)
}

package userns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// A caller is all that the choice of a mapping depends on.
type caller struct {
	uid, gid uint32
	// name is the login name, "" if there is none.
	name string
	// caps is the effective capability set.
	caps uint64
	// uidMap to subgid are the texts of /proc/self/uid_map and gid_map, /etc/subuid and subgid.
	uidMap, gidMap, subuid, subgid string
	// helpers says why newuidmap and newgidmap cannot work; "" if they can.
	helpers string
}

// privileged reports whether the caller can write any map itself.
func (c caller) privileged() bool {
	const need = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	return c.uid == 0 && c.caps&need == need
}

// Choose finds the mapping that the caller can have, without entering a namespace. Root: container 0-65535 is root's
// subuid range, else the highest free block of /proc/self/uid_map, else 1-65535; never 0 = 0. Others: container root is the
// caller, the rest are all its subordinate ranges if newuidmap and newgidmap can work, else one id.
//
// Inside a user namespace "what exists" is what is mapped there. Root without the capabilities to choose has one id, itself.
func Choose() (Mapping, error) {
	c, err := readCaller()
	if err != nil {
		return Mapping{}, err
	}
	return choose(c), nil
}

// One is the mapping of one id: container root is the caller; where the caller is root and can choose, it is the first id
// that Choose would give.
func One() Mapping {
	c, err := readCaller()
	if err != nil {
		c = caller{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
	}
	return one(c)
}

func one(c caller) Mapping {
	m := Mapping{UIDs: []Range{{0, c.uid, 1}}, GIDs: []Range{{0, c.gid, 1}}}
	if !c.privileged() {
		return m
	}
	if uids, gids := ownBlock(c.uidMap, c.subuid), ownBlock(c.gidMap, c.subgid); uids != nil && gids != nil {
		m.UIDs[0].Host, m.GIDs[0].Host = uids[0].Host, gids[0].Host
	}
	return m
}

func choose(c caller) Mapping {
	switch {
	case c.privileged():
		return chooseRoot(c)
	case c.uid == 0:
		return weak(c, "root without CAP_SETUID and CAP_SETGID cannot map other ids")
	case c.helpers != "":
		return weak(c, c.helpers)
	}
	uids := subordinate(c, c.uid, parseMap(c.uidMap), c.subuid)
	gids := subordinate(c, c.gid, parseMap(c.gidMap), c.subgid)
	switch {
	case len(uids) < 2:
		return weak(c, fmt.Sprintf("/etc/subuid has no range for %s", c.who()))
	case len(gids) < 2:
		return weak(c, fmt.Sprintf("/etc/subgid has no range for %s", c.who()))
	}
	return Mapping{UIDs: uids, GIDs: gids}
}

func weak(c caller, why string) Mapping {
	m := one(c)
	m.Why = why
	return m
}

func (c caller) who() string {
	if c.name != "" {
		return c.name
	}
	return strconv.FormatUint(uint64(c.uid), 10)
}

func chooseRoot(c caller) Mapping {
	m := Mapping{UIDs: ownBlock(c.uidMap, c.subuid), GIDs: ownBlock(c.gidMap, c.subgid)}
	if m.UIDs == nil || m.GIDs == nil {
		return weak(c, "this user namespace has no ids besides root's")
	}
	if n := m.IDs(); n < wanted-1 {
		m.Why = fmt.Sprintf("this user namespace has only %d ids besides root's", n)
	}
	return m
}

// ownBlock is the range of ids that is root's for building: never its own id, and if possible nobody else's.
func ownBlock(idMap, subFile string) []Range {
	exist := without(parseMap(idMap), span{0, 1}, span{topID, 1 << 32})
	var others []span
	for _, s := range parseSub(subFile) {
		if s.Name != "root" && s.Name != "0" {
			others = append(others, spanOf(s))
		} else if in := within(spanOf(s), exist); len(in) == 1 && in[0].size() >= wanted {
			return consecutively(0, wanted, in)
		}
	}
	nobody := span{overflowID, overflowID + 2}
	for _, free := range [][]span{without(exist, append(others, nobody)...), exist} {
		for i := len(free) - 1; i >= 0; i-- {
			if s := free[i]; s.size() >= wanted {
				return consecutively(0, wanted, []span{{s.hi - wanted, s.hi}})
			}
		}
	}
	return consecutively(0, wanted, exist)
}

// subordinate is the caller's own id as container root, and after it all its subordinate ranges, in the file's order.
func subordinate(c caller, id uint32, exist []span, subFile string) []Range {
	out, next := []Range{{0, id, 1}}, uint64(1)
	exist = without(exist, span{uint64(id), uint64(id) + 1})
	for _, s := range parseSub(subFile) {
		if s.Name != c.name && s.Name != strconv.FormatUint(uint64(c.uid), 10) {
			continue
		}
		// The same ids may be listed twice, by name and by number; the kernel refuses maps that overlap.
		for _, free := range within(spanOf(s), exist) {
			more := consecutively(next, topID-next, []span{free})
			if len(more) == 0 || len(out) == maxExtents {
				return out
			}
			out, next, exist = append(out, more...), next+uint64(more[0].Count), without(exist, free)
		}
	}
	return out
}

// parseSub reads a file in the form of /etc/subuid: "name:first:count". Lines that make no sense are not there.
func parseSub(text string) []user.SubID {
	sane := func(s user.SubID) bool {
		return s.Name != "" && s.SubID > 0 && s.Count > 0 && s.SubID < topID && s.Count <= topID
	}
	subs, err := user.ParseSubIDFilter(strings.NewReader(text), sane)
	if err != nil {
		return nil // a line too long for the reader: nobody's range
	}
	return subs
}

func spanOf(s user.SubID) span {
	return span{uint64(s.SubID), min(uint64(s.SubID)+uint64(s.Count), topID)}
}

// readCaller gathers what choose needs: a handful of small files.
func readCaller() (caller, error) {
	c := caller{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
	for path, text := range map[string]*string{
		"/proc/self/uid_map": &c.uidMap, "/proc/self/gid_map": &c.gidMap, "/etc/subuid": &c.subuid, "/etc/subgid": &c.subgid,
	} {
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return caller{}, fmt.Errorf("find the ids to map: %w", err)
		}
		*text = string(b)
	}
	if c.uidMap == "" || c.gidMap == "" {
		return caller{}, &Error{
			Err:    errors.New("find the ids to map: /proc/self/uid_map is missing or empty"),
			Remedy: "mount /proc, and use a kernel with CONFIG_USER_NS",
		}
	}
	status := readStatus()
	c.caps = status.caps
	if c.uid != 0 {
		c.name = loginName(c.uid)
		_, _, c.helpers = findHelpers(status)
	}
	return c, nil
}

// loginName is the name of the user, from /etc/passwd or, where users come from elsewhere (LDAP, SSSD), from the environment:
// a wrong one gains nothing, since newuidmap looks it up again.
func loginName(uid uint32) string {
	if u, err := osuser.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		return u.Username
	}
	for _, name := range []string{os.Getenv("USER"), os.Getenv("LOGNAME")} {
		if name != "" {
			return name
		}
	}
	return ""
}

// status is what /proc/self/status says of this process.
type status struct {
	caps       uint64 // effective
	noNewPrivs bool
	seccomp    bool
}

func readStatus() status {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return status{}
	}
	return parseStatus(string(b))
}

func parseStatus(text string) (s status) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch value = strings.TrimSpace(value); name {
		case "CapEff":
			s.caps, _ = strconv.ParseUint(value, 16, 64) // the kernel writes it
		case "NoNewPrivs":
			s.noNewPrivs = value == "1"
		case "Seccomp":
			s.seccomp = value != "0"
		}
	}
	return s
}

// findHelpers finds newuidmap and newgidmap, or says why they cannot work.
func findHelpers(s status) (newuidmap, newgidmap, problem string) {
	paths := map[string]string{}
	for _, name := range []string{"newuidmap", "newgidmap"} {
		if paths[name] = findProgram(name); paths[name] == "" {
			return "", "", name + " is not installed"
		}
		if problem := helperProblem(paths[name]); problem != "" {
			return "", "", problem
		}
	}
	if s.noNewPrivs {
		return "", "", "no_new_privs is set, so newuidmap gains no rights"
	}
	return paths["newuidmap"], paths["newgidmap"], ""
}

// findProgram looks in the absolute directories of PATH and in the usual ones; PATH may be empty in a pod.
func findProgram(name string) string {
	dirs := append(filepath.SplitList(os.Getenv("PATH")), "/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if fi, err := os.Stat(path); err == nil && filepath.IsAbs(dir) && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// helperProblem says why a helper would run without rights: they come from a setuid bit of root or from file capabilities.
func helperProblem(path string) string {
	var fi unix.Stat_t
	if err := unix.Stat(path, &fi); err != nil {
		return fmt.Sprintf("%s: %v", path, err)
	}
	setuid := fi.Mode&unix.S_ISUID != 0 && fi.Uid == 0
	n, err := unix.Getxattr(path, "security.capability", nil)
	if !setuid && (err != nil || n == 0) {
		return path + " has neither the setuid bit of root nor file capabilities"
	}
	var at unix.Statfs_t
	if err := unix.Statfs(path, &at); err == nil && at.Flags&unix.ST_NOSUID != 0 {
		return path + " is on a file system mounted nosuid"
	}
	return ""
}

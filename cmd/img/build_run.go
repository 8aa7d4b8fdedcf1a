package main

import (
	"fmt"
	"path"
	"strings"

	"img/dag"
	"img/dag/dockerfile"
	"img/exec/cdi"
	"img/exec/sshagent"
)

// allow reads --allow: entitlements, several with commas between them. A device's value has commas of its own.
func (r *buildRequest) allow(list []string) error {
	for _, item := range list {
		if name, ok := strings.CutPrefix(item, "device="); ok {
			if err := r.Grants.Add(name); err != nil {
				return usagef("--allow %s: %w", item, err)
			}
			continue
		}
		for a := range strings.SplitSeq(item, ",") {
			switch a {
			case "security.insecure":
				r.Insecurely = true
			case "network.host": // RUN has it anyway
			case "buildx.local.delete": // is about bake's outputs
			case "device":
				r.Grants.All = true
			default:
				return usagef("--allow: unknown entitlement %s: there are security.insecure, network.host and device[=NAME]", a)
			}
		}
	}
	return nil
}

// parseDevices reads --device: a name of CDI, or HOST[:PATH[:PERMISSIONS]], a device node of the host. Whoever gives one here allows it.
func (r *buildRequest) parseDevices(list []string) error {
	for _, s := range list {
		d, err := dockerfile.ParseDevice(s)
		if err != nil {
			return usagef("--device %s: %w", s, err)
		}
		if strings.HasPrefix(d.Name, "/") {
			node, err := deviceNode(d.Name)
			if err != nil {
				return usagef("--device %s: %w", s, err)
			}
			if r.Nodes == nil {
				r.Nodes = map[string]cdi.Node{}
			}
			r.Nodes[d.Name] = node
			d.Required = true
		} else if err := r.Grants.Add(d.Name); err != nil {
			return usagef("--device %s: %w", s, err)
		}
		r.Devices = append(r.Devices, d)
	}
	return nil
}

// deviceNode reads HOST[:PATH[:PERMISSIONS]].
func deviceNode(s string) (cdi.Node, error) {
	parts := strings.Split(s, ":")
	n := cdi.Node{HostPath: path.Clean(parts[0]), Path: path.Clean(parts[0])}
	if len(parts) > 1 && strings.Trim(parts[1], "rwm") == "" && len(parts) == 2 {
		parts = append(parts[:1], "", parts[1])
	}
	if len(parts) > 1 && parts[1] != "" {
		n.Path = path.Clean(parts[1])
	}
	if len(parts) > 2 {
		n.Permissions = parts[2]
	}
	switch {
	case len(parts) > 3, !path.IsAbs(n.Path), strings.Trim(n.Permissions, "rwm") != "":
		return n, fmt.Errorf("the form is HOST[:PATH[:PERMISSIONS]], permissions being letters of rwm")
	}
	return n, nil
}

// resolveDevices finds out what the devices that steps ask for stand for, and refuses before anything runs what the build may not have.
// Specifications are read only if a step asks for a device of them.
func (b *build) resolveDevices() error {
	var registry *cdi.Registry
	b.devices = map[string][]*cdi.Device{}
	for _, v := range b.plan.Graph.Vertices {
		run, ok := v.Op.(*dag.Run)
		if !ok {
			continue
		}
		for _, d := range run.Devices {
			if node, ok := b.r.Nodes[d.Name]; ok {
				b.devices[d.Name] = []*cdi.Device{{Name: d.Name, Edits: cdi.Edits{DeviceNodes: []cdi.Node{node}}}}
				continue
			}
			if registry == nil {
				registry = cdi.Load(b.r.specDirs()...)
			}
			found, err := b.allowedDevices(registry, d)
			if err != nil {
				err.Pos = v.Pos
				return err
			}
			b.devices[d.Name] = found
		}
	}
	return nil
}

func (r *buildRequest) specDirs() []string {
	if len(r.CDIDirs) > 0 {
		return r.CDIDirs
	}
	return cdi.Dirs
}

// allowedDevices finds what one name stands for; nothing, if it is not there and need not be.
func (b *build) allowedDevices(registry *cdi.Registry, d dag.Device) ([]*cdi.Device, *dockerfile.Error) {
	found, err := registry.Allowed(d.Name, b.r.Grants)
	if err != nil {
		return nil, &dockerfile.Error{Err: err, Hint: fmt.Sprintf("--allow device=%s allows it", d.Name)}
	}
	for _, f := range found {
		if err := f.Unserved(); err != nil {
			return nil, &dockerfile.Error{Err: err}
		}
	}
	if len(found) == 0 && d.Required {
		return nil, &dockerfile.Error{Err: fmt.Errorf("required device %q is not registered", d.Name), Hint: missingDevice(registry, b.r.specDirs())}
	}
	if len(found) == 0 {
		notef(b.g.stderr, "optional device %q is not registered: steps run without it", d.Name)
	}
	return found, nil
}

// missingDevice says what there is instead of a device, and what is wrong with specifications.
func missingDevice(registry *cdi.Registry, dirs []string) string {
	if len(registry.Broken) > 0 {
		return fmt.Sprintf("a specification cannot be used: %v", registry.Broken[0])
	}
	if names := registry.Names(); len(names) > 0 {
		return "there are: " + strings.Join(names, ", ")
	}
	return "no device is described in " + strings.Join(dirs, ", ")
}

// defaultAgent is the id of the agent that steps, and git, use unless they name another.
const defaultAgent = "default"

// parseAgents reads --ssh: ID, for the caller's agent, or ID=SOCKET, or ID=KEY[,KEY...]. raw=true hands a socket on that is no agent's.
func parseAgents(list []string, getenv func(string) string) (map[string]*sshagent.Agent, error) {
	out := map[string]*sshagent.Agent{}
	for _, s := range list {
		id, value, _ := strings.Cut(s, "=")
		if id == "" {
			id = defaultAgent
		}
		if out[id] != nil {
			return nil, usagef("--ssh: duplicate agent ID %q", id)
		}
		paths, raw, err := agentPaths(value)
		if err != nil {
			return nil, usagef("--ssh %s: %w", s, err)
		}
		if len(paths) == 0 {
			if paths = []string{getenv("SSH_AUTH_SOCK")}; paths[0] == "" {
				return nil, withHint(exitUsage, fmt.Errorf("--ssh %s: invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set", s),
					"eval $(ssh-agent) && ssh-add; or --ssh %s=FILE for a key without a passphrase", id)
			}
		}
		a, err := sshagent.Open(paths...)
		if err != nil {
			return nil, withCode(exitSource, fmt.Errorf("--ssh %s: %w", s, err))
		}
		if a.Raw = raw; raw && a.Socket == "" {
			return nil, usagef("--ssh %s: raw mode must supply exactly one socket path", s)
		}
		out[id] = a
	}
	return out, nil
}

// agentPaths splits what follows ID= : paths, and "raw" or "raw=BOOL" among them.
func agentPaths(value string) (paths []string, raw bool, err error) {
	for p := range strings.SplitSeq(value, ",") {
		switch p {
		case "":
		case "raw", "raw=true", "raw=1":
			raw = true
		case "raw=false", "raw=0":
			raw = false
		default:
			if strings.HasPrefix(p, "raw=") {
				return nil, false, fmt.Errorf("invalid value for 'raw': %s", p[len("raw="):])
			}
			paths = append(paths, p)
		}
	}
	return paths, raw, nil
}

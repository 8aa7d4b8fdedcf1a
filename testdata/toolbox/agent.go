package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

// agent WHAT: talks to the ssh agent at $SSH_AUTH_SOCK.
//
//	list      prints the comment of each key
//	sign      signs by the first key, an ed25519 one, and checks the signature
//	refused   prints what the agent says to what only its owner may ask
//	junk      prints what it says to what is no message
func agent(args []string) error {
	conn, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
	if err != nil {
		return err
	}
	defer conn.Close()
	switch args[0] {
	case "list":
		keys, err := agentKeys(conn)
		for _, k := range keys {
			fmt.Println("key", string(k[1]))
		}
		return err
	case "sign":
		return agentSign(conn)
	case "refused":
		// Removing a key, all of them, adding one, locking, an extension.
		for _, m := range []string{"\x12", "\x13", "\x11", "\x16", "\x1b"} {
			reply, err := agentAsk(conn, []byte(m+"\x00\x00\x00\x01x"))
			if err != nil {
				return err
			}
			fmt.Printf("%d is answered with %d\n", m[0], reply[0])
		}
		return nil
	case "junk":
		conn.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
		said, _ := io.ReadAll(conn)
		fmt.Printf("junk is answered with %q\n", said)
		return nil
	}
	return fmt.Errorf("no such request: %s", args[0])
}

func agentAsk(conn net.Conn, m []byte) ([]byte, error) {
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(m))), m...)); err != nil {
		return nil, err
	}
	size := make([]byte, 4)
	if _, err := io.ReadFull(conn, size); err != nil {
		return nil, err
	}
	reply := make([]byte, binary.BigEndian.Uint32(size))
	_, err := io.ReadFull(conn, reply)
	return reply, err
}

// cutString takes a string off the front of a message.
func cutString(m []byte) (s, rest []byte) {
	n := binary.BigEndian.Uint32(m)
	return m[4 : 4+n], m[4+n:]
}

// agentKeys returns public keys and comments.
func agentKeys(conn net.Conn) (keys [][2][]byte, err error) {
	reply, err := agentAsk(conn, []byte{11})
	if err != nil || reply[0] != 12 {
		return nil, fmt.Errorf("answer %q, %w", reply, err)
	}
	rest := reply[5:]
	for range binary.BigEndian.Uint32(reply[1:]) {
		var k [2][]byte
		k[0], rest = cutString(rest)
		k[1], rest = cutString(rest)
		keys = append(keys, k)
	}
	return keys, nil
}

func agentSign(conn net.Conn) error {
	keys, err := agentKeys(conn)
	if err != nil || len(keys) == 0 {
		return fmt.Errorf("%d keys, %w", len(keys), err)
	}
	data := []byte(strings.Repeat("data ", 1000))
	m := []byte{13}
	for _, part := range [][]byte{keys[0][0], data} {
		m = append(binary.BigEndian.AppendUint32(m, uint32(len(part))), part...)
	}
	reply, err := agentAsk(conn, append(m, 0, 0, 0, 0))
	if err != nil || reply[0] != 14 {
		return fmt.Errorf("answer %q, %w", reply, err)
	}
	blob, _ := cutString(reply[1:])
	kind, rest := cutString(blob)
	signature, _ := cutString(rest)
	_, rest = cutString(keys[0][0])
	public, _ := cutString(rest)
	if !bytes.Equal(kind, []byte("ssh-ed25519")) || !ed25519.Verify(public, data, signature) {
		return errors.New("the signature is not good")
	}
	fmt.Println("signed by", string(keys[0][1]))
	return nil
}

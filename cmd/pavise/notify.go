package main

import (
	"fmt"
	"net"
)

// notify tells systemd that the agent is ready (sd_notify(3)). Without a socket there is nobody to tell.
func notify(socket, state string) error {
	if socket == "" {
		return nil
	}
	if socket[0] == '@' { // abstract
		socket = "\x00" + socket[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}

// Checks of the API server with client-go. `program CHECK` runs one check against the server that
// $KUBECONFIG names; a failure ends with code 1 and a sentence on standard error.
// A check that prints the line "restart" is answered on standard input once the server is back.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// check is one thing that clients do.
type check func(context.Context, *rest.Config) error

var checks = map[string]check{
	"create_update_conflict":     conflict,
	"patches":                    patches,
	"apply":                      apply,
	"delete":                     remove,
	"pagination":                 pagination,
	"watch_through_a_restart":    watchThroughRestart,
	"typed_informer":             typedInformer,
	"dynamic_informer":           dynamicInformer,
	"metadata_informer":          metadataInformer,
	"informer_through_a_restart": informerThroughRestart,
	"watch_list":                 watchList,
	"lists_by_watches":           listsByWatches,
	"leader_election":            leaderElection,
	"protobuf":                   protobuf,
}

func main() {
	if len(os.Args) != 2 || checks[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: program CHECK")
		os.Exit(2)
	}
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err == nil {
		config.QPS = 1000
		config.Burst = 1000
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
		defer cancel()
		err = checks[os.Args[1]](ctx, config)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var input = bufio.NewReader(os.Stdin)

// restart has the server restarted and returns when it serves again.
func restart() error {
	fmt.Println("restart")
	line, err := input.ReadString('\n')
	if err != nil {
		return fmt.Errorf("waiting for the server's restart: %w", err)
	}
	if line != "restarted\n" {
		return fmt.Errorf("the server's restart was answered with %q", line)
	}
	return nil
}

// that is an error with this sentence where the condition does not hold.
func that(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// until polls a condition that an informer or another client brings about.
func until(ctx context.Context, what string, ok func() bool) error {
	for !ok() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

"""Opens recordings with MDAnalysis and counts their frames.

usage: open_recordings.py FRAMES FILE.h5 [FRAMES FILE.h5 ...]

Up to 300 frames of each are read, the first and the last among them: steps and times rise from frame to
frame. (That every frame is there and what it should be is looked at elsewhere; MDAnalysis takes a
millisecond for one.)
"""

import os
import sys
import tempfile
import warnings

import MDAnalysis
import numpy as np

warnings.filterwarnings("ignore")

for frames, path in zip(sys.argv[1::2], sys.argv[2::2]):
    with tempfile.TemporaryDirectory() as place:
        # MDAnalysis knows the format by the extension .h5md only.
        link = os.path.join(place, "recording.h5md")
        os.symlink(os.path.abspath(path), link)
        universe = MDAnalysis.Universe(link)
        there = len(universe.trajectory)
        assert there == int(frames), f"{path}: {there} frames, {frames} expected"
        steps, times = [], []
        for frame in np.unique(np.linspace(0, there - 1, 300).astype(int)) if there else []:
            ts = universe.trajectory[frame]
            assert np.all(np.isfinite(ts.positions)) and np.all(np.isfinite(ts.velocities))
            steps.append(ts.data["step"])
            times.append(ts.time)
    assert np.all(np.diff(steps) > 0) and np.all(np.diff(times) > 0), path

"""Opens recordings with MDAnalysis and counts their frames.

usage: open_recordings.py FRAMES FILE.h5 [FRAMES FILE.h5 ...]

Every frame is read, and steps and times rise from frame to frame.
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
        steps, times = [], []
        for ts in universe.trajectory:
            assert np.all(np.isfinite(ts.positions)) and np.all(np.isfinite(ts.velocities))
            steps.append(ts.data["step"])
            times.append(ts.time)
    assert len(steps) == int(frames), f"{path}: {len(steps)} frames, {frames} expected"
    assert np.all(np.diff(steps) > 0) and np.all(np.diff(times) > 0), path

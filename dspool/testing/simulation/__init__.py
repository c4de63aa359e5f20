"""The simulation of a pool's core: `SimWorld`, one seed's world. `dspool.testing.simulator` is its command."""

from dspool.testing.simulation.books import Move as Move
from dspool.testing.simulation.moments import FAULT_MOVES as FAULT_MOVES
from dspool.testing.simulation.parts import SimulationFailure as SimulationFailure
from dspool.testing.simulation.simworld import SimWorld as SimWorld
from dspool.testing.simulation.swarm import FAULTS as FAULTS
